"""Signals from inside, at a chosen moment of a chosen phase: SIGKILL, or one that asks to stop."""

import os
import signal
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

import kdbench.assembly.evaluation
import kdbench.records.checkpoint
import kdbench.records.passport
import kdbench.records.record
import kdbench.records.weights
import kdbench.system.files
from kdbench.system.signals import STOPS
from kdbench.teachers.output_cache import OutputCache
from kdbench.training.optimizer import Optimizer

STEP = ("before the update", "after the update")
SCORING = ("before a batch", "after a batch")
FILE = ("before", "half written", "written, not renamed", "renamed")
ROWS = ("before", "some rows", "half a row", "after")
PHASES = {  # name -> its moments, and how often it comes up in a whole life of one run
    "training": (STEP, 6),
    "evaluation": (SCORING, 2),
    "checkpoint": (FILE, 4),
    "table": (ROWS, 2),
    "record": (FILE, 3),  # the student, its passport, the record
}


class Kill(NamedTuple):
    """When to die, or to be asked to stop."""

    phase: str  # of PHASES
    moment: str
    nth: int  # time (from 1) that the phase comes up
    number: signal.Signals = signal.SIGKILL

    @classmethod
    def drawn(cls, random: Random, runs: int, tables: bool, stops: float) -> "Kill":
        """Any moment of a life that trains so many runs; a part `stops` of them only asks."""
        phase = random.choice([name for name in PHASES if tables or name != "table"])
        moments, often = PHASES[phase]
        often *= 1 if phase == "table" else runs
        nth = random.randint(1, often)
        if random.random() < stops:
            return cls(phase, random.choice((moments[0], moments[-1])), nth, random.choice(STOPS))
        return cls(phase, random.choice(moments), nth)


def die() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kill: Kill, random: Random) -> None:
    """Let this process die at that moment, or be asked to stop, if it comes to it."""
    wrap = counter(kill.nth)
    results = (kdbench.records.weights, kdbench.records.passport, kdbench.records.record)
    places: dict[str, list[tuple[Any, str]]] = {
        "training": [(Optimizer, "apply")],  # one by one, in micro-batches and as one network
        "evaluation": [(kdbench.assembly.evaluation, "cross_entropy")],
        "checkpoint": [(kdbench.records.checkpoint, "write_atomically")],
        "table": [(OutputCache, "write")],
        "record": [(room, "write_atomically") for room in results],
    }
    for owner, name in places[kill.phase]:
        setattr(owner, name, wrap(getattr(owner, name), deadly(kill, random)))


Deadly = Callable[..., Any]


def deadly(kill: Kill, random: Random) -> Deadly:
    """What takes the place of the call."""
    if kill.number != signal.SIGKILL or kill.phase in ("training", "evaluation"):
        moments, _ = PHASES[kill.phase]
        return around(kill.moment == moments[0], kill.number)
    return rows(kill.moment, random) if kill.phase == "table" else file(kill.moment, random)


def counter(nth: int) -> Callable[[Callable[..., Any], Deadly], Callable[..., Any]]:
    """Replaces functions, all counted together, so that their n-th call is a deadly one."""
    calls = 0

    def wrap(function: Callable[..., Any], instead: Deadly) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            return instead(function, *arguments) if calls == nth else function(*arguments)

        return counted

    return wrap


def around(first: bool, number: signal.Signals) -> Deadly:
    """A signal before or after the call."""

    def instead(function: Callable[..., Any], *arguments: Any) -> Any:
        if first:
            os.kill(os.getpid(), number)
        result = function(*arguments)
        if not first:
            os.kill(os.getpid(), number)
        return result

    return instead


def file(moment: str, random: Random) -> Deadly:
    """Dies while a file is written."""

    def fsync(descriptor: int) -> None:
        if moment == "half written":
            os.ftruncate(descriptor, random.randrange(os.fstat(descriptor).st_size))
            die()
        os.fsync(descriptor)

    def replace(source: Any, target: Any) -> None:
        if moment == "renamed":
            os.replace(source, target)
        die()

    def instead(function: Callable[..., Any], *arguments: Any) -> None:
        if moment == "before":
            die()
        deadly_os = SimpleNamespace(**{**vars(os), "fsync": fsync, "replace": replace})
        vars(kdbench.system.files)["os"] = deadly_os
        function(*arguments)

    return instead


def rows(moment: str, random: Random) -> Deadly:
    """Dies while a teacher's outputs are written to the output cache."""

    def instead(
        function: Callable[..., Any], table: OutputCache, index: Any, view: Any, outputs: Any
    ) -> None:
        count = len(index) if moment == "after" else random.randrange(len(index))
        if moment != "before":
            function(table, index[:count], view[:count], outputs[:count])
        if moment == "half a row":
            place = int(index[count]) * table.views + int(view[count])
            half = outputs[count].tobytes()[: table.row_bytes // 2]
            with (table.folder / "rows").open("r+b") as file:
                os.pwrite(file.fileno(), half, place * table.row_bytes)
        die()

    return instead
