"""Runs that are killed or stopped, started again, and held against undisturbed ones."""

import shutil
import signal
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from chaos.compare import differences
from chaos.ground import Ground, Process, compose
from chaos.killer import Kill, arm
from kdbench.config.hydra_cli import INTERRUPTED
from kdbench.methods.base import Method
from kdbench.records.settings import TrainSettings
from kdbench.teachers.outputs import CACHED_TAPS
from kdbench.training.together import train_together

ENOUGH = 4  # kills of one run at most
OUTSIDE = 0.25  # part of the kills that come from outside, at any time
STOPS = 0.2  # part of the others that are a signal which asks it to stop
SECONDS = 2.0  # of a run, within which they come


@dataclass
class Trial:
    """A cohort, a run alone or a sweep, and how it was killed."""

    number: int
    kind: str  # run, cohort, sweep
    methods: list[str]
    teacher: str  # runtime.teacher
    kills: list[str] = field(default_factory=list)  # "phase: moment"
    stops: list[str] = field(default_factory=list)  # signals that it stopped at, with the phase
    differences: list[str] = field(default_factory=list)  # from the undisturbed runs; wanted: none

    def closed(self, failure: str | None, expected: Sequence[Path], where: Path) -> "Trial":
        """The trial, with what differs from undisturbed runs; a folder without is removed."""
        if failure is not None:
            self.differences.append(failure)
        else:
            for folder in expected:
                what = differences(folder, where / folder.name)
                self.differences += [f"{folder.name}: {one}" for one in what]
        if not self.differences:
            shutil.rmtree(where)
        return self


def trial(ground: Ground, number: int, most: int) -> Trial:
    """Kill a cohort, or a run alone, up to `most` times, let it end, and compare."""
    draw = Random(f"{ground.seed} {number}")
    size = draw.choice([1, 1, 3])
    tables = draw.random() < 0.5
    methods = cohort(ground, draw, size, tables)
    kind, teacher = "cohort" if len(methods) > 1 else "run", "auto" if tables else "live"
    found = Trial(number, kind, methods, teacher)
    where = ground.folder / f"trial-{number}"
    configs = [compose(ground.settings(name, teacher=teacher), where) for name in methods]
    expected = [ground.undisturbed(name) for name in methods]
    shutil.rmtree(where, ignore_errors=True)  # of a trial that was itself broken off
    code, lives = -signal.SIGKILL, draw.randint(1, ENOUGH)
    while len(found.kills) < most and lives > 0:
        lives -= 1
        kill = Kill.drawn(draw, len(configs), tables, STOPS)
        outside = draw.random() < OUTSIDE
        delay = draw.uniform(0, SECONDS * len(configs)) if outside else None
        code = life(ground, configs, None if outside else kill, delay)
        if code == -signal.SIGKILL:
            found.kills.append("from outside" if outside else f"{kill.phase}: {kill.moment}")
        elif code in (INTERRUPTED, -kill.number):
            found.stops.append(f"{kill.number.name} in {kill.phase}")
        else:
            break
    if code < 0 or code == INTERRUPTED:
        code = life(ground, configs, None, None)
    failure = f"exit status {code}, see {ground.folder / 'log'}" if code != 0 else None
    return found.closed(failure, expected, where)


def life(
    ground: Ground, configs: Sequence[TrainSettings], kill: Kill | None, delay: float | None
) -> int:
    """Train in a new process, from where the folders are; returns its exit status.

    Args:
        ground: where it leaves its log.
        configs: the runs.
        kill: when it dies by itself.
        delay: after how many seconds it is killed from outside.
    """

    def act() -> None:
        if kill is not None:
            arm(kill, Random(f"{ground.seed} {kill}"))
        failures = [one for one in train_together(configs) if isinstance(one, Exception)]
        for failure in failures:
            traceback.print_exception(failure)
        if failures:
            raise SystemExit(1)

    log = ground.folder / "log"
    return Process(act, log, log).wait(delay)


def cohort(ground: Ground, draw: Random, size: int, tables: bool) -> list[str]:
    """Methods that can train side by side: they read the same teachers, or none.

    With `tables`, those whose teacher outputs can come from the output cache, where there are any.
    """
    names, readers = sorted(ground.chosen), ground.readers
    cached = [name for name in names if readers(name) and fits_the_cache(ground.methods[name])]
    names = (cached if tables else names) or names
    first = draw.choice(names)
    others = [n for n in names if n != first and readers(n) == readers(first)]
    return [first, *draw.sample(others, min(size - 1, len(others)))]


def fits_the_cache(method: Method) -> bool:
    """Return whether a table holds all that it reads, as far as that is known before its setup."""
    return method.views == 1 and set(method.taps) <= set(CACHED_TAPS)
