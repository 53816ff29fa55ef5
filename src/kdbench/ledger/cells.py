"""Which runs make up which cell of the tables, and which runs cannot be used."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from kdbench.errors import KdbenchError
from kdbench.records.fields import detects
from kdbench.records.identity import without_later
from kdbench.records.record import Record, read_record, record_files

BASELINE = "kd"
BASELINES = ("ce", BASELINE)  # judged by their score: they claim no gain
ALONE = "none"  # the teacher of a run without one
HOUR = 3600.0


class Key(NamedTuple):
    """What names a cell."""

    dataset: str
    teacher: str
    student: str
    method: str
    protocol: str

    @property
    def pair(self) -> "Key":
        """The table that it is in: the same key for every method."""
        return self._replace(method="")

    @property
    def place(self) -> tuple[str, str, str, str, int, str]:
        """Order in the tables: pair by pair, the baselines first."""
        order = BASELINES.index(self.method) if self.method in BASELINES else len(BASELINES)
        return self.dataset, self.student, self.teacher, self.protocol, order, self.method


def key_of(record: Record) -> Key:
    """The cell that a record belongs to."""
    config = record["config"]
    return Key(
        record["data"]["name"],
        "+".join(teacher["name"] for teacher in record["teachers"]) or ALONE,
        config["student"]["name"],
        config["method"]["name"],
        record["protocol"],
    )


class Cost(NamedTuple):
    """What a run costs, in mean."""

    hours: float
    of: str  # GPU, CPU, or wall where only waiting was measured


def cost(records: Sequence[Record]) -> Cost | None:
    """What runs of a cell cost, by the dearest device that all of their records have measured."""
    for key, of in (("gpu_seconds", "GPU"), ("cpu_seconds", "CPU"), ("seconds_share", "wall")):
        seconds = [record[key] for record in records if record[key] is not None]
        if seconds and len(seconds) == len(records):
            return Cost(mean(seconds) / HOUR, of)
    return None


def machines(records: Iterable[Record]) -> list[str]:
    """What runs were computed on, each once."""
    facts = [record["hardware"] for record in records]
    return sorted({f.get("gpu") or f"{f['cpu']}, {f['threads']} threads" for f in facts})


def read_records(paths: Sequence[Path]) -> tuple[list[Record], list[str]]:
    """The records that can be used, by seed, one of each run; a line for each other one."""
    found: dict[str, tuple[Path, Record]] = {}
    problems = []
    for path in paths:
        try:
            files = record_files([path])
        except KdbenchError as error:
            problems.append(str(error))
            continue
        for file in files:
            try:
                record = read_record(file)
            except KdbenchError as error:
                problems.append(str(error))
                continue
            first, known = found.setdefault(record["run_id"], (file, record))
            if known["checksum"] != record["checksum"]:
                problems.append(f"{file}: left out, {first} is another record of the same run")
    return sorted((r for _, r in found.values()), key=lambda r: (r["seed"], r["run_id"])), problems


def split_tasks(records: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    """Records of classifiers, and of detectors."""
    classifiers: list[Record] = []
    detectors: list[Record] = []
    for record in records:
        (detectors if detects(record) else classifiers).append(record)
    return classifiers, detectors


def several_protocols(runs: Iterable[Record]) -> list[str]:
    """A line for each student whose runs follow several protocols."""
    protocols: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for record in runs:
        key = key_of(record)
        protocols[key.dataset, key.student][key.protocol] += 1
    return [
        f"runs of {student} on {dataset} follow {len(counts)} protocols, which are never compared: "
        + ", ".join(f"{protocol} ({n})" for protocol, n in sorted(counts.items()))
        for (dataset, student), counts in sorted(protocols.items())
        if len(counts) > 1
    ]


def mixture(records: Sequence[Record]) -> str | None:
    """What is wrong with a cell whose finished runs have more than one hash."""
    done = [record for record in records if record["status"] == "done"]
    hashes = sorted({record["hash"] for record in done})
    if len(hashes) < 2:
        return None
    configs = [without_later(record["config"]) for record in done]
    keys = ", ".join(differing_keys(configs)) or "data or teacher"
    return (
        f"{done[0]['cell']} is left out: it mixes runs of different settings ({keys}), hashes "
        f"{', '.join(hashes)}: remove one kind, or give it a method.name of its own"
    )


def differing_keys(configs: Sequence[object], path: str = "") -> list[str]:
    """Dotted names of the settings in which configurations differ, apart from the seed."""
    nodes = [config for config in configs if isinstance(config, dict)]
    if len(nodes) == len(configs):
        keys = sorted({key for node in nodes for key in node})
        return [
            name
            for key in keys
            if path or key not in ("seed", "runtime")
            for name in differing_keys(
                [node.get(key) for node in nodes], f"{path}.{key}" if path else key
            )
        ]
    return [] if all(config == configs[0] for config in configs) else [path]
