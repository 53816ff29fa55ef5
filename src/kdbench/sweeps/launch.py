"""A sweep from its configurations to its summary (`hydra/launcher=cohort`)."""

import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from kdbench.assembly.make import make
from kdbench.config.hydra_cli import print_error
from kdbench.errors import ConfigError, KdbenchError
from kdbench.parallel.torchrun import place
from kdbench.records.failures import failure, forget_failure
from kdbench.records.identity import canonical
from kdbench.records.notices import told
from kdbench.records.settings import TrainSettings
from kdbench.sweeps.local import Ended, Executor, LocalExecutor, Task, environments
from kdbench.sweeps.planning import Failure, Plan, cohorts, plan, runs, teachers_first
from kdbench.sweeps.ray import RayExecutor
from kdbench.sweeps.remaining import time_left
from kdbench.sweeps.settings import Settings
from kdbench.sweeps.slurm import SubmititExecutor
from kdbench.system.console import Console, duration
from kdbench.system.files import check_kept, make_folder, own_folder
from kdbench.system.private import private_folder
from kdbench.system.runtime import Runtime
from kdbench.system.signals import stop_requests
from kdbench.training.jobs import Job

POLL = 0.1  # seconds between polls for cohorts that have ended


def launch(configs: Sequence[TrainSettings], settings: Settings) -> None:
    """Train the runs that have no result yet, side by side where possible.

    A run or a process that fails is tried once more at the end; the others go on, unless
    `settings.fail_fast` is set.

    Raises:
        ConfigError: torchrun has started this process, but a sweep starts its own.
        KdbenchError: runs have no result; each was named, with its reason.
        KeyboardInterrupt: on Ctrl-C or SIGTERM; the runs can be resumed.
    """
    if place().count > 1:
        raise ConfigError(
            "a sweep starts its own processes: run it without torchrun, or with "
            "hydra/launcher=basic to train its runs one after the other on all ranks"
        )
    started, console = time.monotonic(), Console()
    runs_dir = Path(configs[0].runs_dir)
    make_folder(runs_dir)
    executor = open_executor(configs, settings, runs_dir, sys.stdout.isatty())
    with stop_requests() as stop, closing(executor):
        sweep = Sweep(executor, console, stop, settings.size, settings.fail_fast)
        first = plan(teachers_first(configs))
        if first.todo:
            console.message(f"teachers first: {first.describe()}")
            sweep.train(first.todo)
            sweep.failures.clear()  # these failures are reported as those of the other runs
        planned = plan(configs)
        console.message(planned.describe())
        report(planned.failures)
        done = sweep.train([] if settings.fail_fast and planned.failures else planned.todo)
    close(planned, done, sweep.failures, console, time.monotonic() - started)


def open_executor(
    configs: Sequence[TrainSettings], settings: Settings, runs_dir: Path, terminal: bool
) -> Executor:
    """Make the executor that the settings name.

    Raises:
        KdbenchError: its package is not installed, or the runs' device is missing.
    """
    if settings.executor == "submitit":
        # The folder's name cannot be foreseen, since submitit unpickles the results in it.
        for parent in runs_dir.resolve().parents:
            check_kept(parent)
        folder = own_folder(private_folder(runs_dir, ".submitit") / secrets.token_hex(4), 0o700)
        return SubmititExecutor(folder, settings.submitit, settings.processes)
    nodes = {canonical(config.runtime.spelt()): config.runtime for config in configs}
    if settings.executor == "ray":
        needs_gpu = any(node.settings["device"] != "cpu" for node in nodes.values())
        threads = max(node.settings["threads"] or 1 for node in nodes.values())
        return RayExecutor(settings.ray, needs_gpu, threads, settings.processes)
    runtimes: list[Runtime] = [make(node, "runtime") for node in nodes.values()]
    places = environments(runtimes, settings.processes)
    return LocalExecutor(
        private_folder(runs_dir, ".sweeps"), places, shown=terminal and len(places) == 1
    )


class Sweep:
    """A sweep's cohorts, their executor, and the lines that report on them."""

    def __init__(
        self,
        executor: Executor,
        console: Console,
        stop: threading.Event,
        size: int,
        fail_fast: bool = False,
    ) -> None:
        self.executor, self.console, self.stop, self.size = executor, console, stop, size
        self.fail_fast = fail_fast
        self.failures: list[Failure] = []
        self.waiting: deque[Task] = deque()
        self.running: list[Task] = []
        self.noticed: set[str] = set()  # reported notices of runs
        self.named: dict[str, str] = {}  # failures reported while the rest of a cohort trained on
        self.jobs: Sequence[Job] = ()
        self.done = self.number = 0
        self.epochs, self.seconds = 0, 0.0  # of the cohorts that have ended

    def train(self, jobs: Sequence[Job]) -> int:
        """Train the jobs; return how many are done.

        Raises:
            KeyboardInterrupt: the sweep was stopped; it can be resumed.
        """
        self.done, self.jobs = 0, jobs
        for group in cohorts(jobs, self.size):
            self.add(group)
        while self.waiting or self.running:
            if self.stop.is_set():
                self.interrupt()
            while self.begin():
                pass
            for task in self.running:
                self.listen(task)
            for ended in self.executor.ended():
                self.end(ended)
            if self.fail_fast and (self.failures or self.named):
                self.halt()
            self.stop.wait(POLL)
        return self.done

    def halt(self) -> None:
        """Let the training cohorts write checkpoints and stop, and start no more."""
        self.console.message("hydra.launcher.fail_fast: stopping at the first failure")
        self.waiting.clear()
        self.wait_for_checkpoints()
        self.done = sum(job.record is not None for job in self.jobs)
        known = {failure.name for failure in self.failures}
        self.failures += [Failure(*one) for one in self.named.items() if one[0] not in known]
        self.named.clear()

    def add(self, jobs: list[Job], again: bool = False) -> None:
        """Queue a cohort."""
        self.number += 1
        self.waiting.append(Task(self.number, jobs, again))

    def begin(self) -> bool:
        """Start the cohorts that there is room for, and say so; return whether any was started."""
        tasks = list(self.waiting)[: self.executor.room()]
        for task in tasks:
            task.started = time.monotonic()
            for job in task.jobs:
                forget_failure(job.folder)
        started = self.executor.start(tasks) if tasks else 0
        for task in tasks[:started]:
            self.running.append(self.waiting.popleft())
            again = "tried once more, " if task.again else ""
            log = f"; output in {task.log}" if task.log is not None else ""
            self.console.message(f"cohort {task.number} starts: {again}{names(task.jobs)}{log}")
        return started > 0

    def listen(self, task: Task) -> None:
        """Report the notices of a cohort's runs, and runs that fail while the others train on."""
        for job in task.jobs:
            for text in told(job.folder):
                if text not in self.noticed and not task.shown:
                    self.console.message(text)
                self.noticed.add(text)
            name = job.identity.run_id
            error = None if name in self.named else failure(job.folder)
            if error is not None:
                self.named[name] = error
                print_error(f"{name} failed: {error}")

    def end(self, ended: Ended) -> None:
        """Count a cohort's results, and queue the runs that are worth another try."""
        task = ended.task
        self.listen(task)
        self.running.remove(task)
        log = f" (output in {task.log})" if task.log is not None else ""
        if ended.outcomes is None:
            again = self.fail(task, [(job, ended.reason) for job in task.jobs], [])
            print_error(f"cohort {task.number}, {names(task.jobs)}: {ended.reason}{log}")
        else:
            self.seconds += time.monotonic() - task.started
            self.epochs += task.epochs
            pairs = list(zip(task.jobs, ended.outcomes, strict=True))
            self.done += sum(found.error is None for _, found in pairs)
            failed = [(job, found.error) for job, found in pairs if found.error is not None]
            hopeless = [job for job, found in pairs if found.final]
            for job, reason in failed:
                if job.identity.run_id not in self.named:
                    print_error(f"{job.identity.run_id} failed: {reason}{log}")
            again = self.fail(task, failed, hopeless)
        for job in task.jobs:
            self.named.pop(job.identity.run_id, None)
            forget_failure(job.folder)
        if again:
            self.add(again, again=True)
        parts = [f"cohort {task.number} has ended: {self.done} of {runs(len(self.jobs))} done"]
        if again:
            parts.append(f"{runs(len(again))} to be tried once more")
        left = self.left()
        if left is not None:
            parts.append(f"about {duration(left)} left")
        self.console.message(", ".join(parts))

    def fail(
        self, task: Task, failed: Sequence[tuple[Job, str]], hopeless: Sequence[Job]
    ) -> list[Job]:
        """Keep the final failures; return the jobs to try once more."""
        once = task.again or self.fail_fast
        again = [job for job, _ in failed if not once and job not in hopeless]
        stand = [(job, reason) for job, reason in failed if job not in again]
        self.failures += [Failure(job.identity.run_id, reason) for job, reason in stand]
        return again

    def left(self) -> float | None:
        """Estimate the seconds left from the ended cohorts; None at the end, or if unknown."""
        if not self.epochs or not (self.waiting or self.running):
            return None
        per_epoch = self.seconds / self.epochs
        return time_left(per_epoch, self.running, self.waiting, time.monotonic())

    def interrupt(self) -> None:
        """Let the training cohorts write checkpoints, and leave.

        Raises:
            KeyboardInterrupt: always; at once on a second Ctrl-C.
        """
        self.console.message("stopping: what trains now writes checkpoints")
        self.wait_for_checkpoints()
        done = sum(job.record is not None for job in self.jobs)
        raise KeyboardInterrupt(
            f"stopped with {done} of {runs(len(self.jobs))} done; the same command goes on "
            "from there"
        )

    def wait_for_checkpoints(self) -> None:
        """Ask the training cohorts to stop, and wait until they have."""
        self.executor.stop()
        while self.running:
            for ended in self.executor.ended():
                self.running.remove(ended.task)
            time.sleep(POLL)


def names(jobs: Sequence[Job]) -> str:
    """Name jobs in a few words."""
    first = jobs[0].identity.run_id
    return first if len(jobs) == 1 else f"{runs(len(jobs))}, {first} and those beside it"


def report(failures: Sequence[Failure]) -> None:
    """Print a line for each reason of failure, with its runs."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in failures:
        by_reason.setdefault(reason, []).append(name)
    for reason, failed in by_reason.items():
        print_error(f"{', '.join(failed)}: {reason}")


def close(
    planned: Plan, done: int, failures: Sequence[Failure], console: Console, seconds: float
) -> None:
    """Print the summary.

    Raises:
        KdbenchError: runs have no result.
    """
    failed = [*planned.failures, *failures]
    missing = planned.total - planned.done - done
    halted = f", {missing - len(failed)} not tried" if missing > len(failed) else ""
    console.message(
        f"sweep: {done} done, {planned.done} done before, {len(failed)} failed{halted}; "
        f"{duration(seconds)}"
    )
    if missing:
        report(failed if done or failures else [])  # otherwise they have just been reported
        raise KdbenchError(
            f"{missing} of {runs(planned.total)} have no result; the same command tries them again "
            "and leaves the others alone"
        )
