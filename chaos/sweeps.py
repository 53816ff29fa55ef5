"""Sweeps of the cohort launcher: the launcher is killed, or a process that trains for it."""

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from chaos.ground import Act, Ground, Process, Result
from chaos.processes import alive, kill, workers
from chaos.trials import Trial, cohort, records, repeated
from kdbench.records.checkpoint import checkpoint_paths

SEEDS = (0, 1)
METHODS = 3
LIVES = 4  # kills of one sweep at most
STARTING = 8.0  # seconds of a sweep within which half of the kills come, most of it Python's start
TRAINING = 3.0  # after its first checkpoint, within which the others come
ASKED = "job "  # how those begin that are asked to stop, and not killed
ORPHANED = 60.0  # seconds within which such a process must have noticed that its launcher is gone


class Sweep(NamedTuple):
    """A sweep's command, and what is known of it."""

    ground: Ground
    command: list[str]
    where: Path
    expected: list[Path]  # the undisturbed runs
    draw: Random
    prepare: Act | None = None  # called in the launcher's process before

    def start(self) -> tuple[Process, Path, Path]:
        """Give the command; returns its process, and the files of what it says."""
        return self.ground.start("train", *self.command, prepare=self.prepare)


def sweep(ground: Ground, number: int, most: int) -> Trial:
    """Kill a sweep's launcher up to `most` times, or a child of its once a life, and compare."""
    draw = Random(f"{ground.seed} sweep {number}")
    found, given = drawn(ground, draw, Trial(number, "sweep", [], "live"))
    given.command.append("hydra/launcher=cohort")
    victims = [kill_launcher, kill_launcher, kill_everything, kill_child]
    return disturbed(found, given, lambda: draw.choice(victims)(given), most)


def drawn(
    ground: Ground, draw: Random, found: Trial, prepare: Act | None = None
) -> tuple[Trial, Sweep]:
    """Any sweep, but for its launcher's name."""
    found.methods = methods = cohort(ground, draw, METHODS, tables=False)
    where = ground.folder / f"trial-{found.number}"
    expected = [ground.undisturbed(name, seed) for name in methods for seed in SEEDS]
    shutil.rmtree(where, ignore_errors=True)
    command = ["-m", *ground.settings(methods[0]), f"runs_dir={where}"]
    command += [f"method={','.join(methods)}", f"seed={','.join(map(str, SEEDS))}"]
    command += [f"hydra.launcher.size={draw.choice([1, 2, METHODS])}"]
    return found, Sweep(ground, command, where, expected, draw, prepare)


def disturbed(
    found: Trial, given: Sweep, disturb: Callable[[], tuple[str, Result]], most: int
) -> Trial:
    """Give the command again and again, each time with a disturbance, and once without.

    Args:
        found: the trial, not closed yet.
        given: its sweep.
        disturb: returns whom it killed, if anybody, and how the command ended.
        most: kills.
    """
    lives, where = given.draw.randint(1, LIVES), given.where
    result = None
    while (result is None or result.code != 0) and lives > 0 and len(found.kills) < most:
        lives -= 1
        done = records(where)
        victim, result = disturb()
        (found.stops if victim.startswith(ASKED) else found.kills).extend([victim] * bool(victim))
        found.differences += repeated(done, where)
        if result.code not in (0, -signal.SIGKILL):
            break
    if result is None or result.code == -signal.SIGKILL:
        done = records(where)
        process, out, err = given.start()
        result = Result(process.wait(), out.read_text(), err.read_text())
        found.differences += repeated(done, where)
    failure = f"exit status {result.code}: {result.err}" if result.code != 0 else None
    return found.closed(failure, given.expected, where)


def kill_launcher(given: Sweep) -> tuple[str, Result]:
    """Kill the launcher; what trains for it must notice, sooner or later."""
    process, result, phase, orphans = killed(given)
    if process.code == -signal.SIGKILL and given.draw.random() < 0.5:
        end = time.monotonic() + ORPHANED
        while any(map(alive, orphans)) and time.monotonic() < end:
            time.sleep(0.1)
        if any(map(alive, orphans)):
            return f"launcher: {phase}", Result(1, "", "its processes went on without it")
    return f"launcher: {phase}" * (process.code == -signal.SIGKILL), result


def kill_everything(given: Sweep) -> tuple[str, Result]:
    """Kill the launcher and what trains for it."""
    process, result, phase, orphans = killed(given)
    for orphan in orphans:
        kill(orphan)
    return f"launcher and its child: {phase}" * (process.code == -signal.SIGKILL), result


def killed(given: Sweep) -> tuple[Process, Result, str, list[int]]:
    """A launcher that is killed at any time, unless it is faster; its children are left."""
    process, out, err = given.start()
    wait(process, given.where, given.draw)
    orphans: list[int] = []
    if not process.ended():
        orphans = workers(process.pid)
    process.kill()
    code = process.wait()
    said = out.read_text()
    phase = "while a cohort trains" if "cohort 1 starts" in said else "before it trains"
    return process, Result(code, said, err.read_text()), phase, orphans


def kill_child(given: Sweep) -> tuple[str, Result]:
    """Kill a process that trains for the launcher, which goes on with another."""
    process, out, err = given.start()
    while not process.ended() and not workers(process.pid):
        time.sleep(0.01)
    wait(process, given.where, given.draw)
    victim = ""
    for pid in workers(process.pid) if not process.ended() else []:
        victim = "child of the launcher"
        kill(pid)
    idle = len(records(given.where)) == len(given.expected)
    result = Result(process.wait(), out.read_text(), err.read_text())
    if victim and not idle and result.code == 0 and "to be tried once more" not in result.out:
        return victim, result._replace(code=1, err="nothing was tried once more")
    return victim, result


def wait(process: Process, where: Path, draw: Random) -> None:
    """Wait for the moment of a kill, at most to the process's end."""
    if draw.random() < 0.5:
        end = time.monotonic() + draw.uniform(0, STARTING)
    else:
        while not process.ended() and not trains(where):
            time.sleep(0.01)
        end = time.monotonic() + draw.uniform(0, TRAINING)
    while not process.ended() and time.monotonic() < end:
        time.sleep(0.01)


def trains(where: Path) -> bool:
    """Return whether a run has checkpoints."""
    return any(map(checkpoint_paths, where.glob("*-s*-*")))
