"""Everything but kills: disks, second processes, clocks, the service of Weights & Biases."""

import datetime
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from subprocess import PIPE, Popen
from typing import Any

import kdbench.training.recording
from chaos import damage
from chaos.arena import METHOD, Arena, Fault
from chaos.compare import differences
from chaos.ground import SMALL, Act, Ground, run_folder
from chaos.killer import counter
from chaos.mounts import NotAllowedError, grow, read_only, small_disk
from chaos.processes import command_of, descendants, kill
from chaos.sweeps import trains
from kdbench.records.record import RECORD_FILE, read_record
from kdbench.teachers.output_cache import OutputCache
from kdbench.tracking.run_logger import METRICS_FILE
from kdbench.training.optimizer import Optimizer

STEP_KIB = 200  # by which a full disk grows
DAY = 86400.0
LONG = ["schedule.epochs=30", "schedule.milestones=[]"]  # W&B's service is killed on the way


def full_disk(ground: Ground) -> Fault:
    """A disk that is full, again and again, at each place of a run that writes."""
    arena = Arena(ground, "full-disk")
    for method, teacher in ((METHOD, "live"), ("kd", "table")):
        kib = STEP_KIB
        with small_disk(arena.runs, kib):
            result = arena.train(method, teacher)
            while result.code != 0 and kib < 2**14:
                arena.tried += 1
                words = "output cache" if ".tables" in result.err else "make room"
                arena.refused(result, words)
                arena.expect(not list(arena.runs.glob("*-s*-*/*.tmp")), "a temporary file is left")
                kib += arena.draw.randint(STEP_KIB // 2, STEP_KIB)
                grow(arena.runs, kib)
                result = arena.train(method, teacher)
            arena.ends_same(result, method)
    with small_disk(arena.runs, 2**14):
        arena.tried += 1
        result = arena.train("kd", "table", prepare=fill(arena.runs / "filler"))
        arena.refused(result, "make room")
        (arena.runs / "filler").unlink()
        arena.ends_same(arena.train("kd", "table"), "kd")
    outcome = "one line each time; with more room the same command went on, to the same bits"
    return arena.verdict("disk full (tmpfs)", outcome)


def fill(path: Path) -> Act:
    """Let a process fill its disk up before it reads an epoch's rows of an output cache.

    The epoch is the second: by then it has checkpoints.
    """

    def instead(read: Callable[..., Any], *arguments: Any) -> Any:
        with path.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(2**12))
        return read(*arguments)

    return lambda: setattr(OutputCache, "read", counter(2)(OutputCache.read, instead))


def read_only_folder(ground: Ground) -> Fault:
    """The folder of runs cannot be written: from the start, and in the middle."""
    arena = Arena(ground, "read-only")
    with read_only(arena.runs):
        arena.tried += 1
        arena.refused(arena.train(), "set runs_dir=DIR to a folder that can be written")
    arena.kill_at(5)
    before = written(arena.run)
    with read_only(arena.runs):
        arena.tried += 1
        arena.refused(arena.train(), "set runs_dir=DIR to a folder that can be written")
    for place in (arena.run, arena.run / METRICS_FILE):
        with read_only(place):
            arena.tried += 1
            arena.refused(arena.train(), "let it be written")
    arena.expect(written(arena.run).items() >= before.items(), "checkpoints changed")
    arena.ends_same(arena.train())
    return arena.verdict(
        "read-only folder", "one line; writable again, it went on to the same bits"
    )


def written(folder: Path) -> dict[str, int]:
    """A run's checkpoints, each with when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("checkpoint-*.safetensors")}


def pause(step: int, until: Path) -> Act:
    """Let a process wait in a step (from 1) for a file."""

    def instead(update: Callable[..., Any], *arguments: Any) -> Any:
        while not until.exists():
            time.sleep(0.01)
        return update(*arguments)

    return lambda: setattr(Optimizer, "update", counter(step)(Optimizer.update, instead))


def second_process(ground: Ground) -> Fault:
    """A run that trains is started again; two runs fill one table; two sweeps are one."""
    arena = Arena(ground, "second-process")
    go = arena.folder / "go"
    first, _, err = ground.start("train", *arena.arguments(), prepare=pause(3, go), name="first")
    while not trains(arena.runs) and not first.ended():
        time.sleep(0.01)
    before = written(arena.run)
    arena.tried += 1
    arena.refused(arena.train(), f"is being trained by process {first.pid} on")
    arena.expect(written(arena.run) == before, "it touched the other's checkpoints")
    go.touch()
    arena.expect(first.wait() == 0, err.read_text())
    arena.ends_same(arena.train())
    arena.tried += 1
    pair = [
        ground.start("train", *arena.arguments(name, "table"), name=name)[0]
        for name in ("kd", "dkd")
    ]
    for process in pair:
        arena.expect(process.wait() == 0, "one of two runs with one table failed")
    for name in ("kd", "dkd"):
        arena.ends_same(arena.train(name, "table"), name)
    two_sweeps(arena)
    outcome = "the second is told who trains it and touches nothing; the first ends with its bits"
    return arena.verdict("two processes on one run, one table, one sweep", outcome)


def two_sweeps(arena: Arena) -> None:
    """The same sweep, given twice at once; where they met, a third time."""
    arena.tried += 1
    names = ("pkt", "sp")
    command = ["-m", *arena.arguments(names[0]), "hydra/launcher=cohort", "hydra.launcher.size=1"]
    command += [f"method={','.join(names)}"]
    pair = [arena.ground.start("train", *command, name=f"sweep-{i}") for i in (1, 2)]
    for process, _, err in pair:
        if process.wait() != 0:
            said = err.read_text()
            arena.expect("is being trained by" in said and "Traceback" not in said, said)
    arena.expect(arena.ground.command("train", *command).code == 0, "the sweep has no result")
    for name in names:
        arena.ends_same(arena.train(name), name)


def jumping_clock(draw: Random) -> Act:
    """Let the wall clock of a process jump, back and forth by up to a day."""
    original = time.time

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Jumping":
            return cls.fromtimestamp(time.time(), tz)

    def jump() -> float:
        return original() + draw.uniform(-DAY, DAY)

    def prepare() -> None:
        time.time, time.time_ns = jump, lambda: int(jump() * 1e9)
        kdbench.training.recording.datetime = Jumping  # type: ignore[attr-defined]

    return prepare


def clocks(ground: Ground) -> Fault:
    """The clock jumps in a run, and between its lives."""
    arena = Arena(ground, "clock")
    for years in (-10, 10):
        arena.tried += 1
        started = time.monotonic()
        arena.kill_at(5)
        then = time.time() + years * 365 * DAY
        for path in arena.runs.rglob("*"):
            os.utime(path, (then, then))
        arena.ends_same(arena.train(prepare=jumping_clock(arena.draw)))
        seconds = read_record(arena.run / RECORD_FILE).spelt()["seconds"]
        took = time.monotonic() - started
        arena.expect(0 <= seconds <= took, f"{seconds} s recorded of {took:.1f} s")
        (arena.run / RECORD_FILE).unlink()
    outcome = "the same bits; durations are those of a monotonic clock"
    return arena.verdict(
        "clock jumps by up to a day, files are years old or of the future", outcome
    )


def wandb_service(ground: Ground) -> Fault:
    """W&B's service is killed in the middle of a run that it mirrors."""
    arena = Arena(ground, "wandb")
    settings = [*SMALL, *LONG, f"method={METHOD}", *arena.arguments()[len(SMALL) + 1 :]]
    expected = ground.finish([*settings[:-1]], ground.folder / "undisturbed" / "wandb")
    words = [sys.executable, "-m", "kdbench.train", *settings, "logger=wandb"]
    there = {**os.environ, "WANDB_MODE": "offline"}
    arena.tried += 1
    with Popen(words, env=there, stdout=PIPE, stderr=PIPE, text=True) as process:
        services: list[int] = []
        while process.poll() is None and not (services and trains(arena.runs)):
            services = [p for p in descendants(process.pid) if "wandb-core" in command_of(p)]
            time.sleep(0.02)
        for pid in services:
            kill(pid)
        out, err = process.communicate()
    arena.expect(process.returncode == 0, f"exit status {process.returncode}, said {err}")
    arena.expect(bool(services), "W&B started no service")
    said = out.count("Weights & Biases failed")
    arena.expect(said == 1 and not err, f"{said} messages, and {err!r}")
    arena.wrong += differences(expected, run_folder(arena.runs))
    sent = ground.command("sync", str(arena.runs), "--dir", str(arena.folder / "sync"))
    arena.expect(sent.code == 0 and "1 runs written" in sent.out, f"kdbench-sync: {sent}")
    outcome = "training went on to the same bits, one message; kdbench-sync sent the whole run"
    return arena.verdict("service of Weights & Biases killed", outcome)


FAULTS: dict[str, Callable[[Ground], Fault]] = {
    "full disk": full_disk,
    "read-only folder": read_only_folder,
    "checkpoints": damage.checkpoints,
    "tables": damage.tables,
    "records": damage.records,
    "metrics": damage.curves,
    "teachers": damage.teachers,
    "second process": second_process,
    "clock": clocks,
    "wandb": wandb_service,
}


def fault(ground: Ground, name: str) -> Fault:
    """Try one, if this machine allows it."""
    try:
        return FAULTS[name](ground)
    except NotAllowedError as error:
        return Fault(name, 0, "not tried", skipped=str(error))
