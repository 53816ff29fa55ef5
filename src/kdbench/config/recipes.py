"""The recipe in `conf/` that a run follows, and the run's departures from it, for the tables.

This needs no torch.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from kdbench.config.conf_nodes import compose, merged, names, read, text
from kdbench.config.method_files import HEAD
from kdbench.records.contents import RecordedSettings
from kdbench.records.identity import WHERE
from kdbench.records.protocol import DATA_KEYS, KEYS

# A data set's settings that say which images there are: the fingerprint of the data covers them.
IMAGES = (
    *("num_classes", "num_train", "num_test", "seed", "test_split", "label_column", "max_gib"),
    *("train_images", "val_images", "train_annotations", "val_annotations"),
)


class Departure(NamedTuple):
    """A setting that differs from conf's."""

    key: str
    ours: object
    theirs: object  # None where conf has no such setting
    file: str  # of conf, without an ending

    def __str__(self) -> str:
        usual = "no such setting" if self.theirs is None else shown(self.theirs)
        return f"{self.key} {shown(self.ours)} where conf/{self.file}.yaml has {usual}"


class Recipe(NamedTuple):
    """The recipe of conf for a run."""

    method: str | None  # the file of conf/method; None where no file has the run's `_target_`
    departures: tuple[Departure, ...]
    reconstructed: bool  # no source gives the method's settings, or those for the pair, in full


def recipe_of(config: RecordedSettings, ranks: int = 1) -> Recipe:
    """Return the recipe that a run follows, by its targets and settings, not by its name.

    Args:
        config: a record's configuration.
        ranks: the processes that trained the run.
    """
    shared = (*_schedule_departures(config, ranks), *_dataset_departures(config))
    found = _method_file(config)
    if found is None:
        return Recipe(None, shared, False)
    name, pair, departures = found
    return Recipe(name, (*departures, *shared), reconstructed(name, pair))


def _method_file(config: RecordedSettings) -> tuple[str, str | None, tuple[Departure, ...]] | None:
    """Return the file of a run's method, the pair of its settings, and the departures."""
    calls, named = targets(config.method.spelt()), config.method.name
    known = compose("method", named)
    if known is not None and targets(known) == calls:
        return named, *_nearest(config, named)
    tried = [
        (name, *_nearest(config, name))
        for name in names("method")
        if targets(compose("method", name)) == calls
    ]
    if tried:
        return min(tried, key=lambda one: len(one[2]))
    if known is None:
        return None
    theirs = known.get("_target_")
    return named, None, (Departure("_target_", config.method.target, theirs, f"method/{named}"),)


def _nearest(config: RecordedSettings, name: str) -> tuple[str | None, tuple[Departure, ...]]:
    """Return the pair whose settings leave the fewest departures, and these."""
    tried: list[tuple[str | None, tuple[Departure, ...]]] = []
    base = compose("method", name) or {}
    if config.task == "detection":
        base = merged(base, (read("task/detection", name) or {}).get("method", {}))
    for pair in pairs_of(config):
        tuned = read(f"tuned/{name}", pair)
        if tuned is not None:
            node = merged(base, tuned.get("method", {}))
            tried.append((pair, _departures(config.method.settings, node, f"tuned/{name}/{pair}")))
    if not tried:
        tried.append((None, _departures(config.method.settings, base, f"method/{name}")))
    return min(tried, key=lambda one: len(one[1]))


def _schedule_departures(config: RecordedSettings, ranks: int) -> tuple[Departure, ...]:
    """Return the departures from the schedule, without those in the protocol's name."""
    schedule, dataset = config.schedule, config.dataset.name
    name = schedule.name if compose("schedule", schedule.name) else dataset
    node = compose("schedule", name)
    if node is None:
        return ()
    tuned = read("tuned", f"{dataset}_{config.student.name}") or {}
    node = merged(node, tuned.get("schedule", {}))
    if node.get("micro_batches", 1) is None:
        node["micro_batches"] = ranks
    found = _departures(schedule.settings, node, f"schedule/{name}")
    return tuple(one._replace(key=f"schedule.{one.key}") for one in found if one.key not in KEYS)


def _dataset_departures(config: RecordedSettings) -> tuple[Departure, ...]:
    """Return the departures from the data set's pixels: augmentation, sizes, normalisation.

    A data set whose name no file has is its user's own, so that it departs from nothing.
    """
    name = config.dataset.name
    node = compose("dataset", name)
    if node is None:
        return ()
    found = _departures(config.dataset.settings, node, f"dataset/{name}")
    told = {*WHERE, *DATA_KEYS, *IMAGES}
    return tuple(one._replace(key=f"dataset.{one.key}") for one in found if one.key not in told)


def _departures(ours: Mapping[str, Any], theirs: Mapping[str, Any], file: str,
                path: str = "") -> tuple[Departure, ...]:  # fmt: skip
    """Return the settings in which a run differs from conf, without later settings."""
    found: list[Departure] = []
    for key, value in ours.items():
        usual = theirs.get(key)
        if key == "name":
            continue
        if isinstance(value, Mapping) and isinstance(usual, Mapping):
            found += _departures(value, usual, file, f"{path}{key}.")
        elif not equal(value, usual):
            found.append(Departure(f"{path}{key}", value, usual, file))
    return tuple(found)


def equal(ours: object, theirs: object) -> bool:
    """Return whether two settings are equal: YAML writes some numbers as text."""
    if isinstance(theirs, str) and isinstance(ours, float):
        try:
            return float(theirs) == ours
        except ValueError:
            return False
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return ours == theirs


def shown(value: object) -> str:
    """Return a setting's value as text for tables."""
    return "null" if value is None else str(value)


def targets(node: object) -> tuple[object, ...]:
    """Return the targets of a method's node, outermost first."""
    found = []
    while isinstance(node, Mapping):
        found.append(node.get("_target_"))
        node = node.get("inner")
    return tuple(found)


@cache
def reconstructed(method: str, pair: str | None) -> bool:
    """Return whether any of a method's settings, in general or for a pair, is from no source."""
    lines = (text("method", method) or "").splitlines()[:2]
    head = [HEAD.fullmatch(line.removeprefix("# ")) for line in lines]
    if any(match is not None and match[2] == "reconstructed" for match in head):
        return True
    tuned = (read(f"tuned/{method}", pair) or {}).get("method") or {}
    return bool((read("method", method) or {}).get("inferred") or tuned.get("inferred"))


@cache
def pairs() -> dict[tuple[frozenset[str], str], tuple[str, ...]]:
    """Return the files of conf/pair by the keys of their teachers and student."""
    found: dict[tuple[frozenset[str], str], tuple[str, ...]] = {}
    for name in names("pair"):
        chosen = dict(_overrides(read("pair", name)))
        teacher, student = compose("teacher", chosen.get("teacher")), chosen.get("student")
        if teacher is None or student is None:
            continue
        network = compose("student", student) or {}
        key = frozenset(teacher), str(network.get("name"))
        found[key] = (*found.get(key, ()), name)
    return found


def pairs_of(config: RecordedSettings) -> tuple[str, ...]:
    """Return the files of conf/pair with a run's teachers and student."""
    return pairs().get((frozenset(config.teacher), config.student.name), ())


@cache
def named_pairs() -> frozenset[tuple[str, str]]:
    """Return teacher and student of every file of conf/pair, as named in the files."""
    chosen = [dict(_overrides(read("pair", name))) for name in names("pair")]
    return frozenset((one["teacher"], one["student"]) for one in chosen if len(one) == 2)


def _overrides(node: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    for entry in (node or {}).get("defaults", []):
        for key, value in entry.items() if isinstance(entry, dict) else ():
            group = str(key).removeprefix("override /")
            if group in ("teacher", "student"):
                yield group, str(value)
