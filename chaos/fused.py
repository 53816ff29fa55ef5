"""Cohorts whose students train as one network, killed and compared to rounding."""

import shutil
from pathlib import Path
from random import Random

from chaos.compare import distance, far
from chaos.ground import Ground, compose
from chaos.trials import Trial, cohort, life, lives, records
from kdbench.records.record import RECORD_FILE, read_record
from kdbench.records.settings import TrainSettings
from kdbench.training.fused import has_plain_step

AS_ONE = ["runtime=cpu", "runtime.threads=1", "runtime.fused=on"]  # in place of runtime=exact


def fused(ground: Ground, number: int, most: int) -> Trial:
    """Kill a cohort whose students train as one network, let it end, and compare to rounding.

    What goes on from a checkpoint may do so beside fewer students, and so with other last bits.
    """
    draw = Random(f"{ground.seed} fused {number}")
    tables = draw.random() < 0.5
    methods = cohort(ground, draw, draw.choice([3, 4, 6]), tables, has_plain_step)
    found = Trial(number, "fused", methods, "auto" if tables else "live")
    expected = undisturbed_as_one(ground, methods)
    for folder in expected:
        count = read_record(folder / RECORD_FILE).spelt().get("fused")
        found.differences += [f"{folder.name} was fused with {count}"] * (count != len(methods))
    where = ground.folder / f"trial-{number}"
    configs = as_one(ground, methods, found.teacher, where)
    failure = lives(ground, draw, configs, found, most)
    if failure is None:
        found.apart = max(distance(folder, where / folder.name) for folder in expected)
    return found.closed(failure, expected, where, far)


def as_one(ground: Ground, methods: list[str], teacher: str, where: Path) -> list[TrainSettings]:
    """The configurations of a cohort whose students train as one network."""
    named = [ground.settings(name, teacher=teacher) for name in methods]
    return [compose([*(w for w in one if w != "runtime=exact"), *AS_ONE], where) for one in named]


def undisturbed_as_one(ground: Ground, methods: list[str]) -> list[Path]:
    """The folders of such a cohort that was never killed, from the first step to the last.

    Raises:
        RuntimeError: it fails.
    """
    where = ground.folder / "undisturbed" / f"fused-{'-'.join(methods)}"
    if len(records(where)) < len(methods):
        shutil.rmtree(where, ignore_errors=True)
        if life(ground, as_one(ground, methods, "live", where), None, None) != 0:
            raise RuntimeError(f"a cohort fails by itself, see {ground.folder / 'log'}")
    return [path.parent for path in sorted(records(where))]
