"""The grouping of runs into the cells of tables, and the runs that cannot be used."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from kdbench.config.recipes import shown
from kdbench.errors import KdbenchError
from kdbench.records.contents import Done, Record
from kdbench.records.identity import without_later
from kdbench.records.record import read_record, record_files

BASELINE = "kd"
BASELINES = ("ce", BASELINE)  # compared by their scores, since they claim no gain
ALONE = "none"  # the teacher of a run without one
HOUR = 3600.0
DIGITS = 8  # of a sha256, for display


class Key(NamedTuple):
    """The identity of a cell, and the facts that comparable cells share."""

    dataset: str
    teacher: str
    student: str
    method: str
    protocol: str
    data: str = ""  # the data set's fingerprint; as all below, "" for a cell without runs
    taught: str = ""  # sha256 of the teachers' weights
    hash: str = ""  # over all settings

    @property
    def pair(self) -> "Key":
        """Return the key of the cell's table, which all cells compared with it share."""
        return self._replace(method="", hash="")

    @property
    def alone(self) -> "Key":
        """Return the key of the same student's table without a teacher."""
        return self.pair._replace(teacher=ALONE, taught="")

    @property
    def place(self) -> tuple[str, ...]:
        """Return the sort key of the tables: pair by pair, the baselines first."""
        order = BASELINES.index(self.method) if self.method in BASELINES else len(BASELINES)
        pair = self.dataset, self.student, self.teacher, self.protocol, self.data, self.taught
        return *pair, str(order), self.method, self.hash


def key_of(record: Record) -> Key:
    """Return the key of a record's cell."""
    return Key(
        record.data.name,
        "+".join(teacher.name for teacher in record.teachers) or ALONE,
        record.config.student.name,
        record.config.method.name,
        record.protocol,
        record.data.sha256,
        "+".join(teacher.sha256 for teacher in record.teachers),
        record.hash,
    )


def apart(one: Key, other: Key) -> list[str]:
    """Return the differences that keep two cells from being compared, if any.

    A method that reads no teacher can be compared with one that does: the teacher's effect is
    then part of the question.
    """
    taught = [key for key in (one, other) if key.teacher != ALONE]
    names = [_teachers(taught[0]), _teachers(taught[-1])] if taught else ["", ""]
    same_data = one.dataset == other.dataset
    found = {
        "data set": (one.dataset, other.dataset),
        "data": (one.data[:DIGITS], other.data[:DIGITS]) if same_data else ("", ""),
        "student": (one.student, other.student),
        "teachers": (names[0], names[1]),
        "protocol": (one.protocol, other.protocol),
    }
    exact = {"data": same_data and one.data != other.data,
             "teachers": len({(key.teacher, key.taught) for key in taught}) > 1}  # fmt: skip
    return [f"{what} ({a}, {b})" for what, (a, b) in found.items() if exact.get(what, a != b)]


def _teachers(key: Key) -> str:
    """Return a cell's teachers with the first digits of their weights' sha256."""
    pairs = zip(key.teacher.split("+"), key.taught.split("+"), strict=False)
    return "+".join(f"{name} {sha256[:DIGITS]}" for name, sha256 in pairs)


def teachers_of(records: Iterable[Record]) -> list[str]:
    """Return a line for each teacher of some runs, with its weights and its measured score."""
    found: dict[str, None] = {}
    for record in records:
        for teacher in record.teachers:
            words = "not measured" if teacher.score is None else f"{teacher.score:.2f}%"
            found[f"{teacher.name} ({teacher.sha256[:DIGITS]}): {words}"] = None
    return sorted(found)


class Cost(NamedTuple):
    """The mean cost of a run."""

    hours: float
    of: str  # GPU, CPU, or wall where only wall-clock time was measured


def cost(records: Sequence[Done]) -> Cost | None:
    """Return the cost of a cell's runs on the dearest device that all their records measure."""
    measured = {
        "GPU": [record.cost.gpu_seconds for record in records],
        "CPU": [record.cost.cpu_seconds for record in records],
        "wall": [record.cost.seconds_share for record in records],
    }
    for of, found in measured.items():
        seconds = [one for one in found if one is not None]
        if seconds and len(seconds) == len(records):
            return Cost(mean(seconds) / HOUR, of)
    return None


def machines(records: Iterable[Record]) -> list[str]:
    """Return the machines of runs, each once."""
    return sorted({record.hardware.label for record in records})


def read_records(paths: Sequence[Path]) -> tuple[list[Record], list[str]]:
    """Return the usable records by seed, one for each run, and a line for each other record."""
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
            first, known = found.setdefault(record.run_id, (file, record))
            if known.checksum != record.checksum:
                problems.append(f"{file}: left out, {first} is another record of the same run")
    return sorted((r for _, r in found.values()), key=lambda r: (r.seed, r.run_id)), problems


def left_out(runs: Iterable[Record]) -> list[str]:
    """Return a line for each student whose runs are not all comparable: why, and how many."""
    groups: dict[tuple[str, str], dict[Key, int]] = defaultdict(lambda: defaultdict(int))
    for record in runs:
        key = key_of(record).pair
        groups[key.dataset, key.student][key] += 1
    lines = []
    for (dataset, student), counts in sorted(groups.items()):
        by_protocol = _counts(counts, lambda key: key.protocol)
        by_data = _counts(counts, lambda key: key.data[:DIGITS])
        told = [(by_protocol, f"runs of {student} on {dataset} follow", "protocols")]
        told.append((by_data, f"runs of {student} on {dataset} saw", "kinds of data"))
        for teacher in sorted({key.teacher for key in counts} - {ALONE}):
            own = {key: n for key, n in counts.items() if key.teacher == teacher}
            by_weights = _counts(own, _teachers)
            whose = f"runs of {student} taught by {teacher} on {dataset} had"
            told.append((by_weights, whose, "teachers of that name"))
        lines += [
            f"{who} {len(found)} {what}, which are never compared: "
            + ", ".join(f"{name} ({n})" for name, n in found)
            for found, who, what in told
            if len(found) > 1
        ]
    return lines


def _counts(counts: Mapping[Key, int], of: Callable[[Key], str]) -> list[tuple[str, int]]:
    found: dict[str, int] = defaultdict(int)
    for key, n in counts.items():
        found[of(key)] += n
    return sorted(found.items())


def rows_of(groups: Mapping[Key, Sequence[Record]]) -> dict[Key, str]:
    """Name the cells of methods with several cells in a table, by the settings that differ."""
    families: dict[Key, list[Key]] = defaultdict(list)
    for key in groups:
        families[key._replace(hash="")].append(key)
    names = dict.fromkeys(groups, "")
    for family in families.values():
        if len(family) > 1:
            configs = [without_later(groups[key][0].config.spelt()) for key in family]
            differing = differing_keys(configs)
            told = [_settings(config, differing) for config in configs]
            for key, words in zip(family, told, strict=True):
                alike = told.count(words) > 1  # the code's version, or packages'
                names[key] = ", ".join([*words, f"hash {key.hash}"] if alike else words)
    return names


def _settings(config: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    words = []
    for key in keys:
        node: Any = config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        words.append(f"{key.removeprefix('method.')} {shown(node)}")
    return words


def differing_keys(configs: Sequence[object], path: str = "") -> list[str]:
    """Return the dotted keys in which configurations differ, apart from the seed."""
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
