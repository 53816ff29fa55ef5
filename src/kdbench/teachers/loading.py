"""Frozen teachers, each identified and measured before it teaches."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdbench.assembly.build import build_network
from kdbench.assembly.evaluation import evaluate
from kdbench.data.base import Dataset
from kdbench.errors import ConfigError, KdbenchError
from kdbench.records.identity import canonical, without_names
from kdbench.records.passport import Passport, check_data, check_top1, identified
from kdbench.records.settings import TeacherSettings
from kdbench.records.weights import find_checkpoint, load_weights
from kdbench.schema.node import Node
from kdbench.system.files import read_small, write_atomically
from kdbench.system.private import is_sealed, private_folder, seal
from kdbench.system.runtime import Runtime

STANDARD_ERRORS = 3  # a teacher's top-1 within this distance of chance is refused


class TeacherFile(NamedTuple):
    """A teacher's checkpoint, found and identified, not yet loaded."""

    name: str
    network: Node
    path: Path
    passport: Passport  # with the file's own sha256
    key: str | None = None  # the set of weights in the file, where there are several
    allow_chance: bool = False  # it may teach although it scores at chance

    @property
    def label(self) -> str:
        """The teacher in a line for people."""
        return f"teacher {self.name} ({self.path})"

    @property
    def contents(self) -> list[str]:
        """What identifies its weights: the file's sha256, and the key where there is one."""
        return [str(self.passport.sha256), *([] if self.key is None else [self.key])]

    @property
    def cache_facts(self) -> dict[str, Any]:
        """What identifies its output cache, besides data and device."""
        key = {} if self.key is None else {"key": self.key}
        network = without_names(self.network.spelt())
        return {"teacher": self.passport.sha256, **key, "network": network}


class Teacher(NamedTuple):
    """A frozen teacher on the run's device."""

    network: nn.Module
    top1: float  # percent, measured on the run's test set
    predictions: Tensor  # [n] int64 on the CPU, its class for each test image
    notices: tuple[str, ...] = ()  # lines for the users of the runs that it teaches


def find_teacher(name: str, settings: TeacherSettings, runs_dir: Path) -> TeacherFile:
    """Find a teacher's checkpoint and its passport.

    Raises:
        ConfigError: no checkpoint is named.
        KdbenchError: the checkpoint is missing, or is not the file of its passport.
    """
    if settings.checkpoint is None:
        raise ConfigError(f"teacher {name} has no checkpoint: set teacher.{name}.checkpoint=FILE")
    try:
        path = find_checkpoint(settings.checkpoint, runs_dir)
    except KdbenchError as error:
        raise KdbenchError(
            f"{error}. Train it with method=ce student={settings.network.name}, or set "
            f"teacher.{name}.checkpoint=FILE"
        ) from None
    passport = identified(path, settings.passport or Passport())
    further = settings.checkpoint_key, settings.allow_chance
    return TeacherFile(name, settings.network, path, passport, *further)


def load_teacher(
    file: TeacherFile,
    dataset: Dataset,
    runtime: Runtime,
    runs_dir: Path,
    report: Callable[[str], None],
) -> Teacher:
    """Load a frozen teacher onto the run's device, and measure its accuracy the first time.

    Raises:
        KdbenchError: the teacher has another network, data set or normalisation than its passport
            or the run says, scores something else than its passport says, or has outputs that are
            not finite.
        ConfigError: it scores at chance, and is not allowed to.
    """
    check_data(file.label, file.passport, dataset)
    network = build_network(file.network, dataset)
    notices = load_frozen(network, file, runtime)
    path = runs_dir / ".teachers" / f"{measurement_key(file, dataset)}.json"
    labels = dataset.test.labels
    predictions = read_measurement(path, len(labels))
    if runtime.ranks.any(predictions is None):
        report(f"teacher {file.name}: measuring {file.path} on the test set of {dataset.name}")
        where = runtime.device, runtime.memory_format, runtime.ranks
        scores = evaluate(network, dataset.test, dataset, *where)
        check_finite(file, scores.infinite, f"{scores.n} test images")
        predictions = scores.predictions
        runtime.ranks.by_first(partial(write_measurement, path, predictions))
    assert predictions is not None
    top1 = 100 * int((predictions == labels.cpu()).sum()) / len(labels)
    notices += compare(file, top1, len(labels))
    notices += check_chance(file, top1, len(labels), dataset.num_classes)
    return Teacher(network, top1, predictions, tuple(notices))


def load_frozen(network: nn.Module, file: TeacherFile, runtime: Runtime) -> list[str]:
    """Load a teacher's weights, freeze it and put it on the device; return lines for the user.

    Raises:
        KdbenchError: the weights belong to another network.
    """
    option = f"teacher.{file.name}.checkpoint_key"
    notices = load_weights(network, file.path, file.name, file.key, option)
    network.requires_grad_(False).eval()
    network.to(runtime.device).to(memory_format=runtime.memory_format)
    return notices


def measurement_key(file: TeacherFile, dataset: Dataset) -> str:
    """Return a key of everything that a teacher's score depends on."""
    facts = [*file.contents, file.network.spelt(), dataset.fingerprint, dataset.mean, dataset.std]
    return hashlib.sha256(canonical(facts).encode()).hexdigest()[:16]


def write_measurement(path: Path, predictions: Tensor) -> None:
    """Keep a teacher's predictions [n] for the next run."""
    write_sealed(path, {"chosen": predictions.tolist()})


def read_measurement(path: Path, n: int) -> Tensor | None:
    """Return a teacher's kept predictions [n]; None where there are no valid ones."""
    try:
        predictions = torch.tensor((read_sealed(path) or {})["chosen"], dtype=torch.int64)
    except (ValueError, KeyError, TypeError, RuntimeError):
        return None
    return predictions if predictions.shape == (n,) else None


def write_sealed(path: Path, measured: Mapping[str, Any]) -> None:
    """Keep a teacher's measurements, with a seal that only this user can make.

    Args:
        path: RUNS_DIR/.teachers/<key>.json.
        measured: JSON.
    """
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    folder = private_folder(path.parent.parent, path.parent.name)
    mark = seal(canonical([path.name, measured]))
    write_atomically(folder / path.name, json.dumps({**measured, "seal": mark}).encode())


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Return what this user measured before; None where there is nothing, or it is someone else's.

    Measurements in a folder of runs that came from elsewhere are not believed: the teacher is
    measured again.
    """
    try:
        folder = private_folder(path.parent.parent, path.parent.name)
        measured: dict[str, Any] = json.loads(read_small(folder / path.name))
        mark = measured.pop("seal")
        return measured if is_sealed(canonical([path.name, measured]), mark) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, KdbenchError):
        return None


def compare(file: TeacherFile, top1: float, n: int) -> list[str]:
    """Check a teacher's measured top-1 against its passport; return lines for the user.

    Raises:
        KdbenchError: they differ.
    """
    check_top1(file.label, file.passport, top1, n)
    if file.passport.top1 is None:
        return [f"teacher {file.name}: no passport; its top-1 is {top1:.2f}, unverified"]
    return []


def check_finite(file: TeacherFile, infinite: int, images: str) -> None:
    """Refuse a teacher with outputs that are not finite.

    Args:
        file: the teacher's file.
        infinite: the number of images with such an output.
        images: all images in words, for the error line.

    Raises:
        KdbenchError: `infinite` is not 0.
    """
    if infinite:
        raise KdbenchError(
            f"{file.label} has outputs that are not finite, for {infinite} of "
            f"{images}: its weights are damaged or were trained to overflow; take another file"
        )


def check_chance(file: TeacherFile, top1: float, n: int, classes: int) -> list[str]:
    """Refuse a teacher that scores at chance; return lines for the user.

    Raises:
        ConfigError: it is not allowed to teach.
    """
    chance = 1 / classes
    margin = STANDARD_ERRORS * math.sqrt(chance * (1 - chance) / n)
    if top1 > 100 * (chance + margin):
        return []
    line = (
        f"{file.label} scores as guessing does: its top-1 on {n} test images "
        f"is {top1:.2f}, chance is {100 * chance:.2f} +- {100 * margin:.2f}"
    )
    if not file.allow_chance:
        raise ConfigError(
            f"{line}. Its weights, the order of its classes or the normalisation are wrong: mend "
            f"that, or let it teach with teacher.{file.name}.allow_chance=true"
        )
    return [f"WARNING: {line}"]
