"""Sweeps of the cohort launcher: the launcher is killed, or a process that trains for it."""

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from chaos.ground import Ground, Process, Result
from chaos.processes import alive, kill, workers
from chaos.trials import Trial, cohort
from kdbench.records.checkpoint import checkpoint_paths
from kdbench.records.record import RECORD_FILE

SEEDS = (0, 1)
METHODS = 3
LIVES = 4  # kills of one sweep at most
STARTING = 8.0  # seconds of a sweep within which half of the kills come, most of it Python's start
TRAINING = 3.0  # after its first checkpoint, within which the others come
ORPHANED = 60.0  # seconds within which such a process must have noticed that its launcher is gone


class Sweep(NamedTuple):
    """A sweep's command, and what is known of it."""

    ground: Ground
    command: list[str]
    where: Path
    runs: int
    draw: Random


def sweep(ground: Ground, number: int, most: int) -> Trial:
    """Kill a sweep's launcher up to `most` times, or a child of its once a life, and compare."""
    draw = Random(f"{ground.seed} sweep {number}")
    methods = cohort(ground, draw, METHODS, tables=False)
    found = Trial(number, "sweep", methods, "live")
    where = ground.folder / f"trial-{number}"
    expected = [ground.undisturbed(name, seed) for name in methods for seed in SEEDS]
    shutil.rmtree(where, ignore_errors=True)
    command = ["-m", *ground.settings(methods[0]), f"runs_dir={where}", "hydra/launcher=cohort"]
    command += [f"method={','.join(methods)}", f"seed={','.join(map(str, SEEDS))}"]
    command += [f"hydra.launcher.size={draw.choice([1, 2, METHODS])}"]
    given = Sweep(ground, command, where, len(expected), draw)
    victims: list[Callable[[Sweep], tuple[str, Result]]]
    victims = [kill_launcher, kill_launcher, kill_everything, kill_child]
    lives = draw.randint(1, LIVES)
    result = None
    while (result is None or result.code != 0) and lives > 0 and len(found.kills) < most:
        lives -= 1
        done = records(where)
        victim, result = draw.choice(victims)(given)
        found.kills += [victim] * bool(victim)
        found.differences += repeated(done, where)
        if result.code not in (0, -signal.SIGKILL):
            break
    if result is None or result.code == -signal.SIGKILL:
        done = records(where)
        result = ground.command("train", *command)
        found.differences += repeated(done, where)
    failure = f"exit status {result.code}: {result.err}" if result.code != 0 else None
    return found.closed(failure, expected, where)


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
    process, out, err = given.ground.start("train", *given.command)
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
    process, out, err = given.ground.start("train", *given.command)
    while not process.ended() and not workers(process.pid):
        time.sleep(0.01)
    wait(process, given.where, given.draw)
    victim = ""
    for pid in workers(process.pid) if not process.ended() else []:
        victim = "child of the launcher"
        kill(pid)
    idle = len(records(given.where)) == given.runs
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


def records(where: Path) -> dict[Path, int]:
    """The records so far, each with when it was written."""
    return {path: path.stat().st_mtime_ns for path in where.glob(f"*/{RECORD_FILE}")}


def repeated(before: dict[Path, int], where: Path) -> list[str]:
    """Runs that were trained again although they were done."""
    now = records(where)
    return [f"{path.parent.name} was done twice" for path in before if now[path] != before[path]]
