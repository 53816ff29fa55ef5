"""A run's identity and its record, the small committed file that every number comes from."""

import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.errors import ConfigError, KdbenchError
from kdbench.records.fields import LONGEST, check_fields
from kdbench.schema.plugins import packages
from kdbench.system.files import read_small, write_atomically

RECORD_FILE = "record.json"
FORMAT = 2
# Raised when a change of the code changes results at unchanged settings.
RESULTS_VERSION = 1

# Settings that came later, by what they are of, and the value that all earlier runs had: at that
# value they are left out of the hash, so that earlier runs keep their names.
LATER: dict[str, dict[str, Any]] = {
    "kdbench.training.schedule.Schedule": {
        "precision": "fp32",
        "table_precision": "fp32",
        "warmup_epochs": 0,
        "micro_batches": 1,
    },
    "kdbench.data.streaming.imagenet.imagenet": {
        "on_corrupt": "error",
        "resized": None,
        "decoder": "pillow",
    },
}
WHERE = ("root", "download", "cache_dir")  # settings of a data set that say where, and not what

Record = dict[str, Any]


class Identity(NamedTuple):
    """What a run is called; the same command finds the same run."""

    cell: str  # one configuration over its seeds: dataset-teacher-student-method
    hash: str  # 8 hex digits over everything that can change the result, but not the seed
    seed: int

    @property
    def run_id(self) -> str:
        """The name of the run's folder and record."""
        return f"{self.cell}-s{self.seed}-{self.hash}"


def identify(
    config: Mapping[str, Any], dataset: str, data_sha256: str, teachers: Mapping[str, str]
) -> Identity:
    """Name a run.

    Args:
        config: the checked configuration.
        dataset: the data set's name.
        data_sha256: the data set's fingerprint.
        teachers: sha256 of each teacher's file by the teacher's name, in order.

    Raises:
        ConfigError: its names are too long.
    """
    student, method = config["student"]["name"], config["method"]["name"]
    labels = [teacher_label(name, config["teacher"][name]) for name in teachers]
    cell = "-".join([dataset, "+".join(labels) or "none", student, method]).replace("/", "_")
    if len(cell.encode()) > LONGEST - 32:  # room for seed and hash
        raise ConfigError(f"{cell} is too long for a folder's name: shorten the names in it")
    settings = without_later(recorded(config))
    del settings["seed"], settings["runtime"]
    settings["teacher"] = {
        name: [config["teacher"][name]["network"], sha256] for name, sha256 in teachers.items()
    }
    settings["data"] = data_sha256
    if others := packages_of(settings):  # their RESULTS_VERSION
        settings["packages"] = others
    settings["results_version"] = RESULTS_VERSION
    digest = hashlib.sha256(canonical(without_names(settings)).encode()).hexdigest()
    return Identity(cell, digest[:8], config["seed"])


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


def teacher_label(key: str, node: Mapping[str, Any]) -> str:
    """What a teacher is called in cells and tables: its key, and its network where that differs."""
    network = node["network"]["name"]
    return key if key == network else f"{key}_{network}"


def recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as a record keeps it: without paths, which say where and not what."""
    kept = {key: config[key] for key in ("method", "student", "schedule", "runtime", "seed")}
    if "task" in config:  # of another than classification
        kept["task"] = config["task"]
    kept["dataset"] = {key: value for key, value in config["dataset"].items() if key not in WHERE}
    kept["teacher"] = {
        name: {"network": node["network"]} for name, node in config["teacher"].items()
    }
    return kept


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


def write_record(record: Record, path: Path) -> None:
    """Write a record with its content checksum, whole or not at all."""
    record = {**record, "checksum": checksum(record)}
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        KdbenchError: it is torn, altered, of another format or no record.
    """
    try:
        record: Record = json.loads(read_small(path))
        intact = record["checksum"] == checksum(record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise KdbenchError(f"{path} is not a record: restore it, or remove it and rerun") from None
    if not intact:
        raise KdbenchError(f"{path} was altered: restore it, or remove it and rerun")
    if record.get("format") != FORMAT:
        raise KdbenchError(
            f"{path} is a record of format {record.get('format')}, this version reads {FORMAT}: "
            "remove it and rerun, or use the version that wrote it"
        )
    try:
        check_fields(record)
    except ConfigError as error:
        raise KdbenchError(f"{path} is not a record ({error}): remove it and rerun") from None
    return record


def checksum(record: Mapping[str, Any]) -> str:
    """sha256 over a record's content."""
    content = {key: value for key, value in record.items() if key != "checksum"}
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def record_files(paths: Iterable[Path]) -> list[Path]:
    """Files of records among and below `paths`: run folders, folders of them or of records.

    Raises:
        KdbenchError: a path that does not exist.
    """
    found: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise KdbenchError(f"{path} does not exist: give a folder of runs or records")
        if path.is_file():
            found.add(path)
        else:
            found.update(path.glob(RECORD_FILE), path.glob(f"*/{RECORD_FILE}"))
            found.update(p for p in path.glob("*-s*-*.json") if p.is_file())
    return sorted(found)


def find_records(paths: Iterable[Path]) -> list[Record]:
    """All records among and below `paths`.

    Raises:
        KdbenchError: a path that does not exist, or a damaged record.
    """
    return [read_record(path) for path in record_files(paths)]


def code_version() -> str | None:
    """The checkout's commit, with "+changes" where it has any; None outside a checkout."""
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        tracked = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", ":/src", ":/conf"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if tracked else "")
