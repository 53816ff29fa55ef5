"""Runs that are killed, started again, and held against undisturbed ones."""

import json
import math
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import hydra

from chaos.compare import differences
from chaos.killer import Kill, arm
from kdbench import cli
from kdbench.answers import TABLED_TAPS
from kdbench.config import Config, check_train, conf_dir
from kdbench.methods.base import Method
from kdbench.train import train_together

# 3 + 3 steps, and checkpoints after steps 2, 3, 4 and 6; no batch has fewer than 16 images, so that
# a table's answers are the live ones.
SMALL = [
    *("dataset=synthetic", "dataset.num_train=64", "dataset.num_test=32", "schedule.batch_size=24"),
    *("schedule.epochs=2", "schedule.milestones=[1]", "runtime=exact", "runtime.device=cpu"),
    "runtime.checkpoint_steps=2",
]
TEACHERS = ("resnet14", "wrn_16_1")
ENOUGH = 4  # kills of one run at most
OUTSIDE = 0.25  # part of the kills that come from outside, at any time
SECONDS = 2.0  # of a run, within which they come


@dataclass
class Trial:
    """A cohort, or a run alone, and how it was killed."""

    number: int
    methods: list[str]
    teacher: str  # runtime.teacher
    kills: list[str] = field(default_factory=list)  # "phase: moment"
    differences: list[str] = field(default_factory=list)  # from the undisturbed runs; wanted: none


class Ground:
    """A folder with the teachers, the undisturbed runs, and the trials so far.

    Args:
        folder: of this code and seed only.
        seed: of all that is random.
        methods: to choose from.
    """

    def __init__(self, folder: Path, seed: int, methods: dict[str, Method]) -> None:
        self.folder, self.seed, self.methods = folder, seed, methods
        self.results = folder / "trials.jsonl"
        self.known: dict[Path, Path] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def trials(self) -> list[Trial]:
        """Those so far; a line that a kill of this very program has torn is none."""
        found = []
        for line in self.results.read_text().splitlines() if self.results.exists() else []:
            try:
                found.append(Trial(**json.loads(line)))
            except ValueError:
                continue
        return found

    def config(self, method: str, runs_dir: Path, teacher: str = "live") -> Config:
        """A run of a method, with as many teachers as it wants."""
        names = TEACHERS[: self.readers(method)]
        named = [f"teacher=[{','.join(names)}]"] if names else []
        named += [f"teacher.{name}.checkpoint={self.teacher(name)}" for name in names]
        given = [*SMALL, f"method={method}", *named, f"runtime.teacher={teacher}"]
        return compose((*given, f"runs_dir={runs_dir}"))

    def teacher(self, network: str) -> Path:
        """A teacher's folder, trained when it is first asked for."""
        where = self.folder / "teachers" / network
        if where not in self.known:
            given = (*SMALL, "method=ce", f"student={network}", f"runs_dir={where}")
            self.known[where] = self.finish(compose(given))
        return self.known[where]

    def undisturbed(self, method: str) -> Path:
        """The folder of a method's run alone, live and never killed."""
        where = self.folder / "undisturbed" / method
        if where not in self.known:
            self.known[where] = self.finish(self.config(method, where))
        return self.known[where]

    def finish(self, config: Config) -> Path:
        """Train a run in a process that nobody kills; returns its folder.

        Raises:
            RuntimeError: it fails.
        """
        if self.life([config], None, None) != 0:
            raise RuntimeError(f"a run fails by itself; see {self.folder / 'log'}")
        return next(Path(config["runs_dir"]).glob("*-s*-*"))

    def life(self, configs: Sequence[Config], kill: Kill | None, delay: float | None) -> int:
        """Train in a new process, from where the folders are; returns its exit status.

        A process that has imported all and done nothing is copied: it trains at once.

        Args:
            configs: the runs.
            kill: when it dies by itself.
            delay: after how many seconds it is killed from outside.
        """
        child = os.fork()
        if child == 0:
            self.child(configs, kill)
        end = math.inf if delay is None else time.monotonic() + delay
        while True:
            found, status = os.waitpid(child, os.WNOHANG)
            if found == child:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                end = math.inf
            time.sleep(0.002)

    def child(self, configs: Sequence[Config], kill: Kill | None) -> None:
        """What the copy does; it does not return."""
        code = 1
        try:
            log = os.open(self.folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            os.dup2(log, sys.stdout.fileno())
            os.dup2(log, sys.stderr.fileno())
            if kill is not None:
                arm(kill, Random(f"{self.seed} {kill}"))
            failures = [one for one in train_together(configs) if isinstance(one, Exception)]
            for failure in failures:
                traceback.print_exception(failure)
            code = int(bool(failures))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def trial(self, number: int, most: int) -> Trial:
        """Kill a cohort, or a run alone, up to `most` times, let it end, and compare."""
        draw = Random(f"{self.seed} {number}")
        size = draw.choice([1, 1, 3])
        tables = draw.random() < 0.5
        trial = Trial(number, self.cohort(draw, size, tables), "auto" if tables else "live")
        where = self.folder / f"trial-{number}"
        configs = [self.config(name, where, trial.teacher) for name in trial.methods]
        expected = [self.undisturbed(name) for name in trial.methods]
        shutil.rmtree(where, ignore_errors=True)  # of a trial that was itself broken off
        code = -signal.SIGKILL
        for _ in range(draw.randint(1, min(ENOUGH, most))):
            kill = Kill.drawn(draw, len(configs), tables)
            outside = draw.random() < OUTSIDE
            delay = draw.uniform(0, SECONDS * len(configs)) if outside else None
            code = self.life(configs, None if outside else kill, delay)
            if code != -signal.SIGKILL:
                break
            trial.kills.append("from outside" if outside else f"{kill.phase}: {kill.moment}")
        if code == -signal.SIGKILL:
            code = self.life(configs, None, None)
        if code != 0:
            trial.differences.append(f"exit status {code}")
        else:
            for folder in expected:
                found = differences(folder, where / folder.name)
                trial.differences += [f"{folder.name}: {what}" for what in found]
            if not trial.differences:
                shutil.rmtree(where)
        with self.results.open("a") as file:
            file.write(json.dumps(asdict(trial)) + "\n")
        return trial

    def cohort(self, draw: Random, size: int, tables: bool) -> list[str]:
        """Methods that can train side by side: they read the same teachers, or none.

        With `tables`, those whose teachers' answers can come from tables, where there are any.
        """
        names = sorted(self.methods)
        tabled = [name for name in names if self.readers(name) and fits_a_table(self.methods[name])]
        names = (tabled if tables else names) or names
        first = draw.choice(names)
        others = [n for n in names if n != first and self.readers(n) == self.readers(first)]
        return [first, *draw.sample(others, min(size - 1, len(others)))]

    def readers(self, method: str) -> int:
        """How many teachers a method is given here."""
        count = self.methods[method].num_teachers
        return len(TEACHERS) if count is None else min(count, len(TEACHERS))


def fits_a_table(method: Method) -> bool:
    """Whether a table holds all that it reads, as far as that is known before its setup."""
    return method.views == 1 and set(method.taps) <= set(TABLED_TAPS)


def compose(overrides: tuple[str, ...]) -> Config:
    """The checked configuration of a run, as a command would have it."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return check_train(cli.plain(hydra.compose("config", list(overrides))))
