"""Where chaos happens: a folder, processes that are copies of this one, and undisturbed runs."""

import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import hydra

import kdbench.sync
import kdbench.table
import kdbench.train
from kdbench.config import hydra_cli
from kdbench.config.conf_files import conf_dir
from kdbench.config.run_config import check_train
from kdbench.methods.base import Method
from kdbench.records.settings import TrainSettings

# 3 + 3 steps, and checkpoints after steps 2, 3, 4 and 6; no batch has fewer than 16 images, so that
# cached outputs are the live ones.
SMALL = [
    *("dataset=synthetic", "dataset.num_train=64", "dataset.num_test=32", "schedule.batch_size=24"),
    *("schedule.epochs=2", "schedule.milestones=[1]", "runtime=exact", "runtime.device=cpu"),
    "runtime.checkpoint_steps=2",
]
TEACHERS = ("resnet14", "wrn_16_1")
ENTRIES = {"train": kdbench.train.main, "table": kdbench.table.main, "sync": kdbench.sync.main}

Act = Callable[[], object]


class Result(NamedTuple):
    """What a command ended with."""

    code: int
    out: str
    err: str


class Process:
    """A copy of this process, which has imported everything: what it does starts at once.

    Args:
        act: what it does; it ends with 0, with 130 when interrupted, with 1 on any other exception.
        out, err: files that get what it says, at their ends.
    """

    def __init__(self, act: Act, out: Path, err: Path) -> None:
        self.pid = os.fork()
        self.code: int | None = None
        if self.pid == 0:
            self._be(act, out, err)

    def _be(self, act: Act, out: Path, err: Path) -> None:
        code = 1
        try:
            for path, stream in ((out, sys.stdout), (err, sys.stderr)):
                file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                os.dup2(file, stream.fileno())
            act()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except KeyboardInterrupt:
            code = hydra_cli.INTERRUPTED
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def ended(self) -> bool:
        """Return whether it has."""
        if self.code is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found == self.pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait(self, delay: float | None = None) -> int:
        """Its exit status, in the end; it is killed after `delay` seconds."""
        end = math.inf if delay is None else time.monotonic() + delay
        while not self.ended():
            if time.monotonic() > end:
                self.kill()
                end = math.inf
            time.sleep(0.002)
        assert self.code is not None
        return self.code

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal if it is still there."""
        if not self.ended():
            os.kill(self.pid, number)


class Ground:
    """A folder with the teachers, the undisturbed runs, and the results so far.

    Args:
        folder: of this code and seed only.
        seed: of all that is random.
        methods: all there are.
        chosen: the names of those whose runs are killed.
    """

    def __init__(
        self, folder: Path, seed: int, methods: dict[str, Method], chosen: Sequence[str]
    ) -> None:
        self.folder, self.seed, self.methods, self.chosen = folder, seed, methods, chosen
        self.known: dict[Path, Path] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def kept(self, kind: type) -> list[Any]:
        """Results of a kind so far; a line that a kill of this very program has torn is none."""
        path, found = self._file(kind), []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                found.append(kind(**json.loads(line)))
            except ValueError:
                continue
        return found

    def keep(self, result: Any) -> None:
        """Add a result, a dataclass."""
        with self._file(type(result)).open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")

    def _file(self, kind: type) -> Path:
        return self.folder / f"{kind.__name__.lower()}s.jsonl"

    def settings(self, method: str, seed: int = 0, teacher: str = "live") -> list[str]:
        """A run of a method, with as many teachers as it wants, as a command names it."""
        names = TEACHERS[: self.readers(method)]
        named = [f"teacher=[{','.join(names)}]"] if names else []
        named += [f"teacher.{name}.checkpoint={self.teacher(name)}" for name in names]
        named += [f"teacher.{name}.allow_chance=true" for name in names]
        return [*SMALL, f"method={method}", f"seed={seed}", *named, f"runtime.teacher={teacher}"]

    def readers(self, method: str) -> int:
        """How many teachers a method is given here."""
        count = self.methods[method].num_teachers
        return len(TEACHERS) if count is None else min(count, len(TEACHERS))

    def teacher(self, network: str) -> Path:
        """A teacher's folder, trained when it is first asked for."""
        where = self.folder / "teachers" / network
        return self.finish([*SMALL, "method=ce", f"student={network}"], where)

    def undisturbed(self, method: str, seed: int = 0) -> Path:
        """The folder of a method's run alone, live and never killed."""
        where = self.folder / "undisturbed" / f"{method}-{seed}"
        return self.finish(self.settings(method, seed), where)

    def finish(self, settings: list[str], where: Path) -> Path:
        """Train a run that nobody kills, once; returns its folder.

        Raises:
            RuntimeError: it fails.
        """
        if where not in self.known:
            found = self.command("train", *settings, f"runs_dir={where}")
            if found.code != 0:
                raise RuntimeError(f"a run fails by itself: {found.err}")
            self.known[where] = run_folder(where)
        return self.known[where]

    def command(self, entry: str, *arguments: str, prepare: Act | None = None) -> Result:
        """Give a command of kdbench to a process, and wait for it.

        Args:
            entry: of `ENTRIES`.
            arguments: of the command.
            prepare: called in the process before.
        """
        process, out, err = self.start(entry, *arguments, prepare=prepare)
        return Result(process.wait(), out.read_text(), err.read_text())

    def start(
        self, entry: str, *arguments: str, prepare: Act | None = None, name: str = "command"
    ) -> tuple[Process, Path, Path]:
        """Start a command; returns its process, and the files of what it says."""

        def act() -> None:
            if prepare is not None:
                prepare()
            sys.argv = [f"kdbench-{entry}", *arguments]
            ENTRIES[entry]()

        out, err = (self.folder / f"{name}.{kind}" for kind in ("out", "err"))
        for path in (out, err):
            path.write_text("")
        return Process(act, out, err), out, err


def run_folder(where: Path) -> Path:
    """The one run below a folder of runs."""
    (folder,) = where.glob("*-s*-*")
    return folder


def compose(settings: list[str], runs_dir: Path) -> TrainSettings:
    """The checked configuration of a run, as a command would have it."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return check_train(
            hydra_cli.plain(hydra.compose("config", [*settings, f"runs_dir={runs_dir}"]))
        )
