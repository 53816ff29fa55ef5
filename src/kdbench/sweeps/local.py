"""The executor that trains a sweep's cohorts in processes of this machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import torch

from kdbench.errors import ConfigError
from kdbench.sweeps.worker import Outcome
from kdbench.system.files import open_own
from kdbench.training.jobs import Job

# A process takes seconds to start, mostly for importing torch. It is reused after a cohort of fewer
# seconds than these; after a longer one it is replaced, to start in clean memory.
REPLACED_AFTER = 60.0
PART = 65536  # bytes that are read at once


@dataclass
class Task:
    """A cohort for an executor to train."""

    number: int
    jobs: list[Job]
    again: bool = False  # the second try
    log: Path | None = None  # the file of its output; None: the terminal
    shown: bool = False  # its output goes to the launcher's own terminal
    started: float = field(default_factory=time.monotonic)

    @property
    def text(self) -> str:
        """Return the runs to train as another process gets them, a line of JSON."""
        return json.dumps([job.config.spelt() for job in self.jobs])

    @property
    def epochs(self) -> int:
        """Epochs of all runs, or steps of schedules that count these, as a measure of work."""
        schedules = [job.config.schedule.settings for job in self.jobs]
        return sum(one.get("epochs") or one["steps"] for one in schedules)


class Ended(NamedTuple):
    """A cohort that has ended."""

    task: Task
    outcomes: list[Outcome] | None  # for each job; None: its process died
    reason: str = ""  # of its death


class Executor(Protocol):
    """An executor trains cohorts and reports their ends; its methods never wait."""

    def room(self) -> int:
        """Return how many more cohorts may start now."""

    def start(self, tasks: Sequence[Task]) -> int:
        """Start cohorts, no more than there is room for, and set each one's `log`.

        Returns:
            The number of started cohorts, the first of those given.
        """

    def ended(self) -> list[Ended]:
        """The cohorts that have ended since the last call."""

    def stop(self) -> None:
        """Ask every cohort to write checkpoints and end."""

    def close(self) -> None:
        """Release everything; kill cohorts that still train."""


class Worker:
    """One `kdbench.sweeps.worker` process; its output is SWEEPS/<n>.log."""

    def __init__(self, sweeps: Path, environment: Mapping[str, str], shown: bool) -> None:
        self._claim = claim_log(sweeps)
        self.log = None if shown else self._claim
        self.task: Task | None = None
        self._reply = b""  # the process's reply so far
        self._replies, given = os.pipe()
        os.set_blocking(self._replies, False)
        try:
            with os.fdopen(open_own(self._claim, os.O_WRONLY | os.O_APPEND), "ab") as log:
                self.process = subprocess.Popen(
                    # -P: nothing is imported from the current folder.
                    [sys.executable, "-P", "-m", "kdbench.sweeps.worker", str(given)],
                    stdin=subprocess.PIPE,
                    stdout=None if shown else log,
                    stderr=None if shown else subprocess.STDOUT,
                    env={**os.environ, **environment},
                    pass_fds=[given],
                    start_new_session=True,  # the launcher passes Ctrl-C on
                )
        finally:
            os.close(given)

    def give(self, task: Task) -> None:
        """Hand over a cohort."""
        assert self.process.stdin is not None
        task.log = self.log
        task.shown = self.log is None
        self.task, self._reply = task, b""
        line = task.text.encode() + b"\n"
        # A pipe holds 64 KiB; the process reads it once it has imported torch.
        threading.Thread(target=send, args=(self.process.stdin, line), daemon=True).start()

    def ended(self) -> Ended | None:
        """Return the cohort's end, once it has ended."""
        assert self.task is not None
        code = self.process.poll()  # before its reply is read, so that none is missed
        with suppress(BlockingIOError):
            while part := os.read(self._replies, PART):
                self._reply += part
        if self._reply.endswith(b"\n"):
            found = [Outcome(*fields) for fields in json.loads(self._reply)]
            ended = Ended(self.task, found)
        elif code is not None:
            ended = Ended(self.task, None, death(code))
        else:
            return None
        self.task = None
        return ended

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        if self.task is not None:
            self.process.kill()
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        os.close(self._replies)
        if self.log is None:
            self._claim.unlink(missing_ok=True)


class LocalExecutor:
    """Processes of this machine, one for each of `environments`; each trains a cohort at a time."""

    def __init__(
        self, sweeps: Path, environments: Sequence[Mapping[str, str]], shown: bool
    ) -> None:
        self.sweeps, self.shown = sweeps, shown
        self.environments = environments
        self.workers: dict[int, Worker] = {}  # by place

    def room(self) -> int:
        """Return the number of free places."""
        return len(self.environments) - len(self._busy())

    def start(self, tasks: Sequence[Task]) -> int:
        """Hand each cohort to the first free place."""
        busy = self._busy()
        free = [place for place in range(len(self.environments)) if place not in busy]
        for place, task in zip(free, tasks, strict=False):
            if place not in self.workers:
                environment = self.environments[place]
                self.workers[place] = Worker(self.sweeps, environment, self.shown)
            self.workers[place].give(task)
        return len(tasks)

    def ended(self) -> list[Ended]:
        """Return the cohorts that have ended; replace processes that died or trained for long."""
        found = []
        for place, worker in self._busy().items():
            ended = worker.ended()
            if ended is not None:
                found.append(ended)
                if ended.outcomes is None or time.monotonic() - ended.task.started > REPLACED_AFTER:
                    self.workers.pop(place).close()
        return found

    def stop(self) -> None:
        """Send SIGTERM to every process that trains."""
        for worker in self._busy().values():
            worker.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """End every process."""
        while self.workers:
            self.workers.popitem()[1].close()

    def _busy(self) -> dict[int, Worker]:
        return {i: worker for i, worker in self.workers.items() if worker.task is not None}


def send(pipe: IO[bytes], line: bytes) -> None:
    """Write a line, however long it takes."""
    with suppress(BrokenPipeError):  # the process has died; `Worker.ended` says so
        pipe.write(line)
        pipe.flush()


def claim_log(folder: Path) -> Path:
    """Make a new file <n>.log in the folder, with the first free number."""
    taken = [int(path.stem) for path in folder.glob("*.log") if path.stem.isdigit()]
    number = max(taken, default=0) + 1
    while True:
        path = folder / f"{number}.log"
        try:
            os.close(open_own(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            return path
        except FileExistsError:  # another sweep was faster
            number += 1


def death(code: int) -> str:
    """Say how a process died."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    hint = "; is there too little memory?" if code == -signal.SIGKILL else ""
    return f"its process was killed by {signal.Signals(-code).name}{hint}"


def environments(runtimes: Sequence[Any], processes: int | None) -> list[dict[str, str]]:
    """Return the environment variables of each process: a GPU, or a share of the CPU's threads.

    No CUDA context is created.

    Args:
        runtimes: the runs' `kdbench.system.runtime.Runtime`.
        processes: the number of processes; None: one for each GPU, or one.

    Raises:
        ConfigError: more processes than GPUs.
    """
    gpus = visible_gpus() if any(one.device.type == "cuda" for one in runtimes) else []
    if gpus and processes is not None and processes > len(gpus):
        raise ConfigError(
            f"hydra.launcher.processes={processes}, but there are {len(gpus)} GPUs, and each "
            "takes one process at a time: leave it out, or raise hydra.launcher.size"
        )
    count = processes or len(gpus) or 1
    places = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[:count]] or [{} for _ in range(count)]
    if count > 1 and "OMP_NUM_THREADS" not in os.environ:
        share = str(max(1, torch.get_num_threads() // count))
        places = [{**place, "OMP_NUM_THREADS": share} for place in places]
    return places


def visible_gpus() -> list[str]:
    """Return the name of each GPU of this process for CUDA_VISIBLE_DEVICES."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(i) for i in range(count)]
