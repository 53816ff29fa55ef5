"""Grouping of runs that can share batches and teachers into cohorts."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from kdbench.assembly.build import build_method
from kdbench.errors import ConfigError
from kdbench.records.identity import canonical
from kdbench.records.settings import TrainSettings
from kdbench.training.member import Member

# These are equal for all runs of a cohort, besides teachers and some keys of the schedule.
SHARED = ("task", "dataset", "runtime", "seed", "runs_dir")
LENGTH = ("epochs", "steps", "score_steps")  # a schedule has the first, or the others
SHARED_SCHEDULE = (
    *(*LENGTH, "batch_size", "micro_batches", "precision", "table_precision"),
    *("label_smoothing", "mixup", "cutmix", "mixup_prob", "mixup_switch_prob", "mixup_mode"),
    *("random_erasing", "rand_augment", "repeats"),
)


def check_alike(configs: Sequence[TrainSettings]) -> None:
    """Refuse runs that cannot train side by side.

    Raises:
        ConfigError: names the first key that differs.
    """
    told = [config.spelt() for config in configs]
    for key in SHARED:
        _check_one(key, (spelt.get(key) for spelt in told))
    for key in SHARED_SCHEDULE:
        _check_one(f"schedule.{key}", (spelt["schedule"].get(key) for spelt in told))
    _check_one("teacher", (spelt["teacher"] for spelt in told if spelt["teacher"]))


def group_alike(configs: Sequence[TrainSettings], size: int) -> list[list[TrainSettings]]:
    """Group runs that can train side by side into groups of at most `size`, in order."""
    groups: list[list[TrainSettings]] = []
    open_groups: dict[str, list[list[TrainSettings]]] = {}
    for config in configs:
        seen = config if reads_teachers(config) else replace(config, teacher={})
        told = seen.spelt()
        schedule = told["schedule"]
        common = [told.get(key) for key in SHARED] + [schedule.get(key) for key in SHARED_SCHEDULE]
        beside = open_groups.setdefault(canonical(common), [])
        group = next((one for one in beside if _teachers_fit(one, seen)), None)
        if group is None:
            group = []
            groups.append(group)
            beside.append(group)
        group.append(seen)
        if len(group) == size:
            beside.remove(group)
    return groups


def _teachers_fit(group: Sequence[TrainSettings], config: TrainSettings) -> bool:
    """Return whether a run's teachers are the group's; a run without teachers fits any group."""
    found = [one.teacher for one in (*group, config) if one.teacher]
    return all(teacher == found[0] for teacher in found)


def reads_teachers(config: TrainSettings) -> bool:
    """Return whether the method uses teachers; if not, the run fits any cohort."""
    return build_method(config.method, config.seed).num_teachers != 0


def _check_one(key: str, values: Iterable[Any]) -> None:
    found = {canonical(value): value for value in values}
    if len(found) > 1:
        first, second = list(found.values())[:2]
        while isinstance(first, dict) and isinstance(second, dict):
            inner = next(k for k in {**first, **second} if first.get(k) != second.get(k))
            key, first, second = f"{key}.{inner}", first.get(inner), second.get(inner)
        raise ConfigError(
            f"these runs cannot train side by side: {key} differs ({first}, {second})"
        )


def by_step(members: Iterable[Member]) -> list[list[Member]]:
    """Group members by the steps that they have done, fewest first: each group is a cohort."""
    groups: dict[int, list[Member]] = {}
    for member in members:
        groups.setdefault(member.state.step, []).append(member)
    return [groups[step] for step in sorted(groups)]
