"""SIGKILL from inside, at a chosen moment of a chosen phase."""

import os
import signal
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

import kdbench.checkpoint
import kdbench.files
import kdbench.metrics
import kdbench.passport
import kdbench.record
import kdbench.weights
from kdbench.optim import Optimizer
from kdbench.teacher_table import TeacherTable

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
    """When to die."""

    phase: str  # of PHASES
    moment: str
    nth: int  # time (from 1) that the phase comes up

    @classmethod
    def drawn(cls, random: Random, runs: int, tables: bool) -> "Kill":
        """Any moment of a life that trains so many runs."""
        phase = random.choice([name for name in PHASES if tables or name != "table"])
        moments, often = PHASES[phase]
        often *= 1 if phase == "table" else runs
        return cls(phase, random.choice(moments), random.randint(1, often))


def die() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kill: Kill, random: Random) -> None:
    """Let this process die at that moment, if it comes to it."""
    wrap = counter(kill.nth)
    if kill.phase in ("training", "evaluation"):
        first = kill.moment.startswith("before")
        owner, name = (
            (Optimizer, "update") if kill.phase == "training" else (kdbench.metrics, "add_to_bins")
        )
        setattr(owner, name, wrap(getattr(owner, name), around(first)))
    elif kill.phase == "table":
        TeacherTable.write = wrap(TeacherTable.write, rows(kill.moment, random))
    else:
        checkpoint = kill.phase == "checkpoint"
        results = (kdbench.weights, kdbench.passport, kdbench.record)
        for room in (kdbench.checkpoint,) if checkpoint else results:
            room.write_atomically = wrap(room.write_atomically, file(kill.moment, random))


Deadly = Callable[..., None]


def counter(nth: int) -> Callable[[Callable[..., Any], Deadly], Callable[..., Any]]:
    """Replaces functions, all counted together, so that their n-th call is a deadly one."""
    calls = 0

    def wrap(function: Callable[..., Any], deadly: Deadly) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth:
                deadly(function, *arguments)
            return function(*arguments)

        return counted

    return wrap


def around(first: bool) -> Deadly:
    """Dies before or after the call."""

    def deadly(function: Callable[..., Any], *arguments: Any) -> None:
        if not first:
            function(*arguments)
        die()

    return deadly


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

    def deadly(function: Callable[..., Any], *arguments: Any) -> None:
        if moment == "before":
            die()
        kdbench.files.os = SimpleNamespace(**{**vars(os), "fsync": fsync, "replace": replace})
        function(*arguments)

    return deadly


def rows(moment: str, random: Random) -> Deadly:
    """Dies while answers of a teacher are written to its table."""

    def deadly(
        function: Callable[..., Any], table: TeacherTable, index: Any, view: Any, answers: Any
    ) -> None:
        count = len(index) if moment == "after" else random.randrange(len(index))
        if moment != "before":
            function(table, index[:count], view[:count], answers[:count])
        if moment == "half a row":
            place = int(index[count]) * table.views + int(view[count])
            half = answers[count].tobytes()[: table.row_bytes // 2]
            with (table.folder / "rows").open("r+b") as file:
                os.pwrite(file.fileno(), half, place * table.row_bytes)
        die()

    return deadly
