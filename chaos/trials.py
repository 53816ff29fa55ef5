"""Runs that are killed or stopped, started again, and held against undisturbed ones."""

import shutil
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from chaos.compare import differences
from chaos.ground import Ground, Process, compose
from chaos.killer import Kill, arm
from kdbench.config.hydra_cli import INTERRUPTED
from kdbench.methods.base import Method
from kdbench.records.record import RECORD_FILE
from kdbench.records.settings import TrainSettings
from kdbench.teachers.outputs import CACHED_TAPS
from kdbench.training.together import train_together

ENOUGH = 4  # kills of one run at most
OUTSIDE = 0.25  # part of the kills that come from outside, at any time
STOPS = 0.2  # part of the others that are a signal which asks it to stop
SECONDS = 2.0  # of a run, within which they come


@dataclass
class Trial:
    """What was trained, and how it was killed."""

    number: int
    kind: str  # run, cohort, sweep, fused, slurm, agents
    methods: list[str]
    teacher: str  # runtime.teacher
    kills: list[str] = field(default_factory=list)  # "phase: moment"
    stops: list[str] = field(default_factory=list)  # signals that it stopped at, with the phase
    differences: list[str] = field(default_factory=list)  # from the undisturbed runs; wanted: none
    apart: float | None = None  # the greatest distance of weights from theirs, where it is measured

    def closed(
        self,
        failure: str | None,
        expected: Sequence[Path],
        where: Path,
        compare: Callable[[Path, Path], list[str]] | None = None,
    ) -> "Trial":
        """The trial, with what differs from undisturbed runs; a folder without is removed."""
        if failure is not None:
            self.differences.append(failure)
        else:
            for folder in expected:
                what = (compare or differences)(folder, where / folder.name)
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
    failure = lives(ground, draw, configs, found, most)
    return found.closed(failure, expected, where)


def lives(
    ground: Ground, draw: Random, configs: Sequence[TrainSettings], found: Trial, most: int
) -> str | None:
    """Kill a cohort up to `most` times, then let it end; return why it does not."""
    where, tables = Path(configs[0].runs_dir), found.teacher != "live"
    shutil.rmtree(where, ignore_errors=True)  # of a trial that was itself broken off
    code, left = -signal.SIGKILL, draw.randint(1, ENOUGH)
    done: dict[Path, int] = {}
    while len(found.kills) < most and left > 0:
        left -= 1
        kill = Kill.drawn(draw, len(configs), tables, STOPS)
        outside = draw.random() < OUTSIDE
        delay = draw.uniform(0, SECONDS * len(configs)) if outside else None
        code = life(ground, configs, None if outside else kill, delay)
        found.differences += repeated(done, where)
        done = records(where)
        if code == -signal.SIGKILL:
            found.kills.append("from outside" if outside else f"{kill.phase}: {kill.moment}")
        elif code in (INTERRUPTED, -kill.number):
            found.stops.append(f"{kill.number.name} in {kill.phase}")
        else:
            break
    if code < 0 or code == INTERRUPTED:
        code = life(ground, configs, None, None)
        found.differences += repeated(done, where)
    return f"exit status {code}, see {ground.folder / 'log'}" if code != 0 else None


def records(where: Path) -> dict[Path, int]:
    """The records so far, each with when it was written."""
    return {path: path.stat().st_mtime_ns for path in where.glob(f"*-s*-*/{RECORD_FILE}")}


def repeated(before: dict[Path, int], where: Path) -> list[str]:
    """Runs that were trained again although they were done."""
    now = records(where)
    return [f"{path.parent.name} was done twice" for path in before if now[path] != before[path]]


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


def cohort(
    ground: Ground,
    draw: Random,
    size: int,
    tables: bool,
    fits: Callable[[Method], bool] = lambda _: True,
) -> list[str]:
    """Methods that fit and can train side by side: they read the same teachers, or none.

    With `tables`, those whose teacher outputs can come from the output cache, where there are any.
    """
    names, readers = sorted(n for n in ground.chosen if fits(ground.methods[n])), ground.readers
    cached = [name for name in names if readers(name) and fits_the_cache(ground.methods[name])]
    names = (cached if tables else names) or names
    first = draw.choice(names)
    others = [n for n in names if n != first and readers(n) == readers(first)]
    return [first, *draw.sample(others, min(size - 1, len(others)))]


def fits_the_cache(method: Method) -> bool:
    """Return whether a table holds all that it reads, as far as that is known before its setup."""
    return method.views == 1 and set(method.taps) <= set(CACHED_TAPS)
