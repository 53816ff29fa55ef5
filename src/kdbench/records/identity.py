"""What a run is called: the same command finds the same run."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from kdbench.errors import ConfigError
from kdbench.records.contents import LONGEST, RecordedSettings, RecordedTeacher
from kdbench.records.settings import TrainSettings
from kdbench.schema.node import Node
from kdbench.schema.plugins import packages

# Raised when a change of the code changes results at unchanged settings.
RESULTS_VERSION = 1
# A run's name is a hash over `_target_` paths too. Code that moves keeps the path that the first
# runs were recorded under, so that they are found again: old path by new, of modules and of
# classes that have another name now.
FIRST_PATHS = {
    "kdbench.data.memory.digits": "kdbench.data.digits",
    "kdbench.data.memory.image_folder": "kdbench.data.image_folder",
    "kdbench.data.memory.parquet": "kdbench.data.parquet",
    "kdbench.data.memory.synthetic": "kdbench.data.synthetic",
    "kdbench.data.memory.tiny_imagenet": "kdbench.data.tiny_imagenet",
    "kdbench.data.memory.torchvision_sets": "kdbench.data.torchvision_sets",
    "kdbench.data.streaming.imagenet": "kdbench.data.imagenet",
    "kdbench.networks.tapped": "kdbench.networks.external",
    "kdbench.system.runtime": "kdbench.runtime",
    "kdbench.tasks.detection.coco": "kdbench.detection.coco",
    "kdbench.tasks.detection.hint": "kdbench.detection.hint",
    "kdbench.tasks.detection.networks": "kdbench.detection.networks",
    "kdbench.training.schedule": "kdbench.optim",
    "kdbench.training.step_schedule.StepSchedule": "kdbench.detection.schedule.DetectionSchedule",
}
# Settings that came later, by what they are of (its first path), and the value that all earlier
# runs had: at that value they are left out of the hash, so that earlier runs keep their names.
REGIMES = {"fraction": 1.0, "long_tail": 1.0}
IN_MEMORY = (
    "digits.digits",
    "image_folder.image_folder",
    "parquet.parquet",
    "synthetic.synthetic",
    "tiny_imagenet.tiny_imagenet",
    "torchvision_sets.cifar10",
    "torchvision_sets.cifar100",
    "torchvision_sets.fashion_mnist",
    "torchvision_sets.stl10",
)
LATER: dict[str, dict[str, Any]] = {
    **{f"kdbench.data.{name}": REGIMES for name in IN_MEMORY},
    "kdbench.optim.Schedule": {
        "precision": "fp32",
        "table_precision": "fp32",
        "warmup_epochs": 0,
        "micro_batches": 1,
        "optimizer": "sgd",
        "optimizer_settings": None,
        "nesterov": False,
        "filter_bias_and_bn": False,
        "layer_decay": None,
        "clip_grad": None,
        "clip_mode": "norm",
        "decay": "step",
        "decay_by": "epoch",
        "decay_epochs": None,
        "min_lr": 0.0,
        "warmup_lr": None,
        "ema_decay": None,
        "label_smoothing": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "mixup_prob": 1.0,
        "mixup_switch_prob": 0.5,
        "mixup_mode": "batch",
        "random_erasing": 0.0,
        "rand_augment": None,
        "repeats": 1,
    },
    "kdbench.methods.ofa.OFA": {"stages": [], "exit_weight": 1.0, "tokens": False},
    "kdbench.networks.external.timm_model": {
        "size": None,
        "mean": None,
        "std": None,
        "settings": None,
    },
    "kdbench.networks.external.torchvision_model": {"size": None, "mean": None, "std": None},
    "kdbench.detection.schedule.DetectionSchedule": {"micro_batches": 1},
    "kdbench.data.imagenet.imagenet": {
        "on_corrupt": "error",
        "resized": None,
        "decoder": "pillow",
        **REGIMES,
    },
}
WHERE = ("root", "download", "cache_dir")  # settings of a data set that say where, and not what


class Identity(NamedTuple):
    """What a run is called; the same command finds the same run."""

    cell: str  # one configuration over its seeds: dataset-teacher-student-method
    hash: str  # 8 hex digits over everything that can change the result, but not the seed
    seed: int

    @property
    def run_id(self) -> str:
        """The name of the run's folder and record."""
        return f"{self.cell}-s{self.seed}-{self.hash}"


def short_names(run_ids: Sequence[str]) -> dict[str, str]:
    """Return each run's name, and a short one that tells it apart from the others.

    It is method and seed, with the student before them or the hash behind where runs share both.
    """
    for shape in ("{method} {seed}", "{student} {method} {seed}", "{method} {seed} {hash}"):
        found = {run_id: shape.format_map(_parts(run_id)) for run_id in run_ids}
        if len({*found.values()}) == len(found):
            break
    return found


def _parts(run_id: str) -> dict[str, str]:
    """Take a run's name apart; in a method's name with a hyphen, what follows it counts."""
    _, student, method, seed, digits = run_id.rsplit("-", 4)
    return {"student": student, "method": method, "seed": seed[1:], "hash": digits}


def identify(
    config: TrainSettings, dataset: str, data_sha256: str, teachers: Mapping[str, str]
) -> Identity:
    """Name a run.

    Args:
        config: the checked configuration; weights that the student starts from with their sha256.
        dataset: the data set's name.
        data_sha256: the data set's fingerprint.
        teachers: sha256 of each teacher's file by the teacher's name, in order.

    Raises:
        ConfigError: its names are too long.
    """
    labels = [teacher_label(name, config.teacher[name].network) for name in teachers]
    names = [dataset, "+".join(labels) or "none", config.student.name, config.method.name]
    cell = "-".join(names).replace("/", "_")
    if len(cell.encode()) > LONGEST - 32:  # room for seed and hash
        raise ConfigError(f"{cell} is too long for a folder's name: shorten the names in it")
    return Identity(cell, digest(recorded(config), data_sha256, teachers), config.seed)


def digest(config: RecordedSettings, data_sha256: str, teachers: Mapping[str, str]) -> str:
    """Return the 8 hex digits over everything that can change a run's result, but not its seed.

    Args:
        config: the configuration as its record keeps it.
        data_sha256: the data set's fingerprint.
        teachers: sha256 of each teacher's file by the teacher's name, in order.
    """
    settings = without_later(config.spelt())
    del settings["seed"], settings["runtime"]
    settings["teacher"] = {
        name: [
            without_later({name: settings["teacher"][name]["network"]})[name],
            sha256,
            *filter(None, [config.teacher[name].checkpoint_key]),
        ]
        for name, sha256 in teachers.items()
    }
    settings["data"] = data_sha256
    if others := packages_of(settings):  # their RESULTS_VERSION
        settings["packages"] = others
    settings["results_version"] = RESULTS_VERSION
    return hashlib.sha256(canonical(without_names(settings)).encode()).hexdigest()[:8]


def packages_of(node: object) -> dict[str, str]:
    """The versions of the packages of others whose code a configuration names (`packages`)."""
    found: dict[str, str] = {}
    values: Iterable[object] = ()
    if isinstance(node, Mapping):
        top = str(node.get("_target_")).partition(".")[0]
        found = {name: version for name, version in packages().items() if name == top}
        values = node.values()
    elif isinstance(node, list | tuple):
        values = node
    for value in values:
        found |= packages_of(value)
    return dict(sorted(found.items()))


def teacher_label(key: str, network: Node) -> str:
    """What a teacher is called in cells and tables: its key, and its network where that differs."""
    return key if key == network.name else f"{key}_{network.name}"


def recorded(config: TrainSettings) -> RecordedSettings:
    """The configuration as a record keeps it: code under its first path, and no paths of files.

    A file's path says where something is and not what.
    """
    start = None if config.start is None else config.start.spelt()
    what = {k: value for k, value in config.dataset.settings.items() if k not in WHERE}
    return RecordedSettings(
        method=_first(config.method),
        student=_first(config.student),
        schedule=_first(config.schedule),
        runtime=_first(config.runtime),
        seed=config.seed,
        task=config.task,
        # By what is in the file, and not where it is.
        start=start and {k: value for k, value in start.items() if k != "checkpoint"},
        dataset=_first(replace(config.dataset, settings=what)),
        teacher={
            name: RecordedTeacher(network=_first(one.network), checkpoint_key=one.checkpoint_key)
            for name, one in config.teacher.items()
        },
    )


def _first(node: Node) -> Node:
    return Node.read(with_first_paths(node.spelt()))


def with_first_paths(node: Any) -> Any:
    """A copy whose `_target_` paths are those that runs are named by (`FIRST_PATHS`)."""
    return _renamed(node, FIRST_PATHS)


def with_present_paths(node: Any) -> Any:
    """A copy of a record's node whose `_target_` paths are those of the code as it is."""
    return _renamed(node, {first: present for present, first in FIRST_PATHS.items()})


def _renamed(node: Any, names: Mapping[str, str]) -> Any:
    if isinstance(node, Mapping):
        copy = {key: _renamed(value, names) for key, value in node.items()}
        if isinstance(target := copy.get("_target_"), str):
            module, _, name = target.rpartition(".")
            renamed = f"{names.get(module, module)}.{name}"
            copy["_target_"] = names.get(target, renamed)
        return copy
    if isinstance(node, list | tuple):
        return [_renamed(item, names) for item in node]
    return node


def without_later(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without later settings (`LATER`) that have the value of earlier runs."""
    kept = {}
    for group, node in config.items():
        target = node.get("_target_") if isinstance(node, Mapping) else None
        later = LATER.get(target, {}) if isinstance(target, str) else {}
        kept[group] = (
            {key: value for key, value in node.items() if key not in later or value != later[key]}
            if later
            else node
        )
    return kept


def without_names(node: Any) -> Any:
    """A copy without the names of target nodes: a preset equals its settings spelt out."""
    if isinstance(node, Mapping):
        drop = "name" if "_target_" in node else None
        return {key: without_names(value) for key, value in node.items() if key != drop}
    if isinstance(node, list | tuple):
        return [without_names(item) for item in node]
    return node


def canonical(value: object) -> str:
    """JSON with one spelling for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
