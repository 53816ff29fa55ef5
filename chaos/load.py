"""`make load`: a sweep of hundreds of tiny runs, all of it killed half-way, and what it holds.

    python -m chaos.load [--count 500] [--folder runs/load] [--page docs/reliability.md]

Exit code 1: a run has no record or was done twice, or memory or open files grow.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from chaos.processes import children, kill, memory
from chaos.run import method_of, write_page
from kdbench.assembly.method_pages import recipes
from kdbench.records.record import RECORD_FILE, read_record

TINY = ["dataset=synthetic", "dataset.num_train=32", "dataset.num_test=16", "runtime=cpu"]
TINY += ["schedule.batch_size=16", "schedule.epochs=1", "schedule.milestones=[]", "student=resnet8"]
SIDE_BY_SIDE = 20  # methods, and so runs in a cohort, at most
POLL = 0.5  # seconds between looks
GROWTH_MIB, GROWTH_FILES = 200, 8  # from the first cohort's end to a life's end, at most


class Held(NamedTuple):
    """What the launcher and its child hold, when so many runs were done."""

    done: int
    launcher: tuple[float, int]  # MiB, open files
    worker: tuple[float, int]


def command(count: int, folder: Path) -> list[str]:
    """A sweep of so many runs: methods by seeds."""
    names = [name for name in recipes() if (method_of(name).num_teachers or 2) < 2]
    methods = next(n for n in range(min(SIDE_BY_SIDE, count), 0, -1) if count % n == 0)
    seeds = ",".join(str(seed) for seed in range(count // methods))
    teacher = f"teacher.resnet8.checkpoint={next((folder / 'teacher').glob('*-s*-*'))}"
    words = [
        *TINY,
        "teacher=resnet8",
        teacher,
        "teacher.resnet8.allow_chance=true",
        f"method={','.join(names[:methods])}",
    ]
    words += [f"seed={seeds}", "hydra/launcher=cohort", f"hydra.launcher.size={methods}"]
    return [*train("-m"), *words, f"runs_dir={folder / 'runs'}"]


def train(*arguments: str) -> list[str]:
    """`kdbench-train` in a process of its own."""
    return [sys.executable, "-m", "kdbench.train", *arguments]


def records(folder: Path) -> dict[Path, int]:
    """The records so far, each with when it was written."""
    return {path: path.stat().st_mtime_ns for path in (folder / "runs").glob(f"*/{RECORD_FILE}")}


def live(words: Sequence[str], folder: Path, until: int | None) -> tuple[int, list[Held]]:
    """Give the command; kill it, and what trains for it, when `until` runs are done.

    Returns:
        Its exit status, and what was held whenever there were more records than before.
    """
    held: list[Held] = []
    seen = len(records(folder))
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
    while process.poll() is None:
        workers = children(process.pid)
        done = len(records(folder))
        if workers and done > seen:
            seen = done
            held.append(Held(done, memory(process.pid), memory(workers[0])))
        if until is not None and done >= until:
            for pid in (process.pid, *workers):
                kill(pid)
        time.sleep(POLL)
    return process.returncode, held


def grown(held: Sequence[Held]) -> list[str]:
    """What grew in a life beyond the bounds."""
    first, last, found = held[0], held[-1], []
    for who in ("launcher", "worker"):
        before, after = getattr(first, who), getattr(last, who)
        if after[0] > before[0] + GROWTH_MIB or after[1] > before[1] + GROWTH_FILES:
            found.append(f"the {who} held {before} (MiB, files) first, {after} at last")
    return found


def report(count: int, lives: Sequence[Sequence[Held]], seconds: float) -> str:
    """The measurements in Markdown."""
    lines = [
        f"`make load COUNT={count}`, torch {torch.__version__}, {os.cpu_count()} cores: {count} "
        f"runs ended with {count} records in {seconds / 60:.0f} minutes; at {lives[0][-1].done} "
        "all processes were killed with SIGKILL, and the same command did the others.",
        "",
        "| command | runs done | launcher, MiB | its files | its child, MiB | its files |",
        "|---|---|---|---|---|---|",
    ]
    for name, held in zip(("first", "again"), lives, strict=True):
        for one in (held[0], held[len(held) // 2], held[-1]):
            (mib, files), (child, opened) = one.launcher, one.worker
            lines.append(f"| {name} | {one.done} | {mib:.0f} | {files} | {child:.0f} | {opened} |")
    return "\n".join(lines)


def main() -> None:
    """Train, kill, train on, and judge."""
    parser = argparse.ArgumentParser(description="a sweep of hundreds of runs, killed half-way")
    parser.add_argument("--count", type=int, default=500, help="runs")
    parser.add_argument("--folder", type=Path, default=Path("runs/load"))
    parser.add_argument("--page", type=Path, help="where the results are written")
    given = parser.parse_args()
    folder, started = given.folder.resolve(), time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "runs").mkdir(parents=True)
    teacher = train(*TINY, "method=ce", "seed=1000", f"runs_dir={folder / 'teacher'}")
    subprocess.run(teacher, check=True, stdout=subprocess.DEVNULL)
    words = command(given.count, folder)
    _, first = live(words, folder, given.count // 2)
    before = records(folder)
    code, again = live(words, folder, None)
    after = records(folder)
    problems = [*grown(first), *grown(again)]
    problems += [f"exit status {code}, see {folder / 'log'}"] * (code != 0)
    problems += [
        f"{path.parent.name} was done twice" for path in before if before[path] != after[path]
    ]
    done = [read_record(path).status for path in after].count("done")
    problems += [f"{done} records of {given.count}"] * (done != given.count)
    print(*problems, sep="\n")
    text = report(given.count, (first, again), time.monotonic() - started)
    print(text)
    if given.page is not None and not problems:
        write_page(given.page, "load", text)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
