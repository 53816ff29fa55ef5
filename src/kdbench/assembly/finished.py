"""Finished runs, and checkpoints of others, as networks on their data sets."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from kdbench.assembly.build import build_method, build_network, set_up
from kdbench.assembly.make import make
from kdbench.config.hydra_cli import compose_group
from kdbench.data.base import Dataset
from kdbench.errors import ConfigError, KdbenchError, nearest
from kdbench.methods.base import Method, Wrapper
from kdbench.records.contents import ClassifierRecord
from kdbench.records.identity import canonical
from kdbench.records.passport import Passport, check_data, identified
from kdbench.records.record import RECORD_FILE, read_record
from kdbench.records.settings import TeacherSettings, TrainSettings
from kdbench.records.weights import STUDENT_FILE, load_weights
from kdbench.schema.node import Node
from kdbench.system.files import named_path, read_small

CONFIG_FILE = "config.json"


class Source(NamedTuple):
    """Where a network comes from, before anything is built."""

    name: str  # a run's id, or what a user called
    path: Path  # of the weights
    network: Node
    dataset: Node | None  # the node of its data; None where nobody said
    passport: Passport  # with the sha256 of the weights
    config: TrainSettings | None = None  # of a run: what it was trained under
    record: ClassifierRecord | None = None  # of a run

    @property
    def sha256(self) -> str:
        """Return the sha256 of the weights."""
        return str(self.passport.sha256)

    @property
    def folder(self) -> Path:
        """Return a run's folder, or that of the file."""
        return self.path.parent

    @property
    def method(self) -> str | None:
        """Return the name of a run's method."""
        return None if self.record is None else self.record.config.method.name

    @property
    def cell(self) -> str | None:
        """Return the cell and the hash of a run, which its other seeds share."""
        return None if self.record is None else f"{self.record.cell}-{self.record.hash}"

    @property
    def seed(self) -> int | None:
        """Return a run's seed."""
        return None if self.record is None else self.record.seed

    @property
    def top1(self) -> float | None:
        """Return the top-1 in percent that its passport states."""
        return self.passport.top1

    @property
    def teachers(self) -> Mapping[str, TeacherSettings]:
        """Return the nodes of a run's teachers, by name."""
        return {} if self.config is None else self.config.teacher


def find_sources(
    names: Sequence[str], runs_dir: Path, dataset: Node | None, root: str | None
) -> list[Source]:
    """Find what a user names: runs, cells, folders of runs, and NETWORK:FILE for a checkpoint.

    Args:
        names: as a user gives them.
        runs_dir: where runs are looked for.
        dataset: the data for checkpoints; None: those of the runs beside them.
        root: where the data lie now; None: where the runs found them.

    Raises:
        ConfigError: nothing is named, or a name is nobody's.
        KdbenchError: a file is damaged, a run has failed, or a passport is of another file.
    """
    if not names:
        raise ConfigError("no run is named: set runs=[RUN,...], a run's folder or name each")
    found: dict[Path, Source] = {}
    for name in names:
        if is_checkpoint(name):
            network, _, file = name.partition(":")
            source = _checkpoint(name, network, named_path(file))
            found[source.path] = source
            continue
        for folder in find_runs(name, runs_dir):
            found[folder] = _run(folder)
    sources = list(found.values())
    default = dataset or next((one.dataset for one in sources if one.dataset is not None), None)
    return [one._replace(dataset=_moved(one.dataset or default, root)) for one in sources]


def is_checkpoint(name: str) -> bool:
    """Return whether a user names a checkpoint, as NETWORK:FILE, and not a run."""
    return ":" in name and not Path(name).exists()


def find_runs(name: str, runs_dir: Path) -> list[Path]:
    """Return the folders of the finished runs that a name means.

    Raises:
        KdbenchError: there is none, or the seeds of several configurations bear the name.
    """
    path = named_path(name)
    if (path / RECORD_FILE).is_file():
        return [path]
    if inside := sorted(file.parent for file in path.glob(f"*/{RECORD_FILE}")):
        return inside
    if path.parent != Path("."):  # a folder of runs, and the name of one in it
        runs_dir, name = path.parent, path.name
    folders = sorted(file.parent for file in runs_dir.glob(f"*/{RECORD_FILE}"))
    for cut in (r"", r"-[0-9a-f]{8}$", r"-s\d+-[0-9a-f]{8}$"):  # a run, a seed, a cell
        runs = [folder for folder in folders if re.sub(cut, "", folder.name) == name]
        if len({folder.name.rpartition("-")[2] for folder in runs}) > 1:
            choices = ", ".join(folder.name for folder in runs)
            raise KdbenchError(f"several configurations are called {name}: name one of {choices}")
        if runs:
            return runs
    known = {re.sub(r"-[0-9a-f]{8}$", "", folder.name) for folder in folders}
    raise KdbenchError(
        f"no run {name}: no such folder, and none of that name in {runs_dir}; "
        f"{nearest(name, known)} A checkpoint is named NETWORK:FILE"
    )


def _run(folder: Path) -> Source:
    """Return a finished run's weights, held against its record and its passport."""
    record = read_record(folder / RECORD_FILE)
    if record.detects:
        raise ConfigError(f"{folder.name} is a detector: name runs of classifiers")
    path = folder / STUDENT_FILE
    if not isinstance(record, ClassifierRecord) or not path.is_file():
        raise KdbenchError(f"{folder.name} has no trained student: finish it with its command")
    config = _read_config(folder / CONFIG_FILE)
    passport = _passport(path, config.student.name)
    if record.student_sha256 not in (None, passport.sha256):
        raise KdbenchError(f"{path} is not the file of its record: train the run again")
    passport = passport.filled_from(Passport(top1=record.top1_last))
    facts = config.student, config.dataset, passport, config, record
    return Source(record.run_id, path, *facts)


def _read_config(path: Path) -> TrainSettings:
    try:
        return TrainSettings.read(json.loads(read_small(path)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KdbenchError(f"{path} is no run's configuration ({error!r}): restore it") from None


def _checkpoint(name: str, network: str, path: Path) -> Source:
    """Return a file of anybody's, as the network that the user says it is of."""
    if not path.is_file():
        raise KdbenchError(f"no checkpoint {path}: name a file, as resnet32:FILE")
    passport = _passport(path, network)
    return Source(name, path, Node.read(compose_group("student", network)), None, passport)


def _passport(path: Path, network: str) -> Passport:
    passport = identified(path, Passport())
    if passport.network not in (None, network):
        raise KdbenchError(f"{path} is a {passport.network} by its passport, not a {network}")
    return passport


def _moved(node: Node | None, root: str | None) -> Node:
    if node is None:
        raise ConfigError("no data set is named: set dataset=NAME for a checkpoint")
    return node if root is None else node.having(root=root)


class Shelf:
    """Data sets by what makes them, each made once."""

    def __init__(self) -> None:
        self._made: dict[str, Dataset] = {}

    def dataset(self, source: Source) -> Dataset:
        """Return the data of a network, held against its record and passport.

        Raises:
            ConfigError: they are others.
        """
        assert source.dataset is not None
        key = canonical(source.dataset.spelt())
        if key not in self._made:
            self._made[key] = make(source.dataset, "dataset")
        dataset = self._made[key]
        if source.record is not None and source.record.data.sha256 != dataset.fingerprint:
            raise ConfigError(
                f"{source.name} was trained on other images than {dataset.name} holds here: set "
                "root=DIR to the folder that it was trained from"
            )
        check_data(source.name, source.passport, dataset)
        return dataset


def build_finished(source: Source, dataset: Dataset) -> tuple[nn.Module, list[str]]:
    """Build the network with its weights, in eval mode and frozen; return it and lines to show.

    A method that changes the student, as SimKD's other head, does so here too; it sees teachers of
    the right shapes without their weights, for what it takes of them is among the student's.

    Raises:
        KdbenchError: the weights are not of the network.
    """
    network = build_network(source.network, dataset)
    if source.config is not None:
        seed = source.config.seed
        method = build_method(source.config.method, seed)
        if _adapts(method):
            given = source.teachers.items()
            teachers = {name: build_network(one.network, dataset) for name, one in given}
            network = set_up(method, network, teachers, dataset, seed)
    notices = load_weights(network, source.path, source.network.name)
    return network.eval().requires_grad_(False), notices


def _adapts(method: Method) -> bool:
    while isinstance(method, Wrapper):
        method = method.inner
    return type(method).adapt is not Method.adapt
