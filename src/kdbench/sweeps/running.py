"""A sweep's cohorts while they train: what starts, what is said of it, and what is tried again."""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

from kdbench.config.hydra_cli import print_error
from kdbench.records.failures import failure, forget_failure
from kdbench.records.notices import told
from kdbench.sweeps.budget import Limit, Unlimited
from kdbench.sweeps.local import Ended, Executor, Task
from kdbench.sweeps.planning import Failure, cohorts, runs
from kdbench.sweeps.remaining import time_left
from kdbench.sweeps.worth import as_given
from kdbench.system.console import Console, duration
from kdbench.training.jobs import Job

POLL = 0.1  # seconds between polls for cohorts that have ended
Stages = Callable[[Sequence[Job]], list[list[Job]]]


class Sweep:
    """A sweep's cohorts, their executor, and the lines that report on them.

    Args:
        executor: trains the cohorts.
        console: takes the lines.
        stop: is set to stop the sweep.
        size: the runs of a cohort at most.
        fail_fast: stop at the first failure.
        limit: what there is time for; None: everything.
        shared: a run that another process trains is no failure.
    """

    def __init__(
        self,
        executor: Executor,
        console: Console,
        stop: threading.Event,
        size: int,
        fail_fast: bool = False,
        limit: Limit | None = None,
        shared: bool = False,
    ) -> None:
        self.executor, self.console, self.stop, self.size = executor, console, stop, size
        self.fail_fast, self.shared = fail_fast, shared
        self.limit: Limit = limit or Unlimited()
        self.stages: Stages = as_given
        self.failures: list[Failure] = []
        self.held: list[Failure] = []  # trained by other processes, where the sweep is `shared`
        self.started: set[str] = set()
        self.waiting: deque[Task] = deque()
        self.running: list[Task] = []
        self.noticed: set[str] = set()  # reported notices of runs
        self.named: dict[str, str] = {}  # failures reported while the rest of a cohort trained on
        self.jobs: Sequence[Job] = ()
        self.done = self.number = 0
        self.epochs, self.seconds = 0, 0.0  # of the cohorts that have ended

    def train(self, jobs: Sequence[Job], stages: Stages = as_given) -> int:
        """Train the jobs, stage by stage; return how many are done.

        Raises:
            KeyboardInterrupt: the sweep was stopped; it can be resumed.
        """
        self.done, self.jobs, self.stages = 0, jobs, stages
        self.waiting.clear()
        for stage in self.stages(jobs):
            for group in cohorts(stage, self.size):
                self.add(group)
        while self.waiting or self.running:
            if self.stop.is_set():
                self.interrupt()
            if self.limit.spent:
                if self.running:
                    self.halt("the time is over: what trains now writes checkpoints")
                break
            while self.begin():
                pass
            if not self.running and not any(self.limit.fitting(one.jobs) for one in self.waiting):
                break
            for task in self.running:
                self.listen(task)
            for ended in self.executor.ended():
                self.end(ended)
            if self.fail_fast and (self.failures or self.named):
                self.halt("hydra.launcher.fail_fast: stopping at the first failure")
            self.stop.wait(POLL)
        return self.done

    @property
    def late(self) -> list[Job]:
        """The jobs that the time did not suffice for, in order; those begun come first."""
        ended = {one.name for one in self.failures} | {one.name for one in self.held}
        ordered = [job for stage in self.stages(self.jobs) for job in stage]
        left = [one for one in ordered if one.record is None and one.identity.run_id not in ended]
        return sorted(left, key=lambda job: job.identity.run_id not in self.started)

    def halt(self, why: str) -> None:
        """Let the training cohorts write checkpoints and stop, and start no more."""
        drawn = self.drawn
        if not drawn:
            self.console.message(why)
        self.waiting.clear()
        self.wait_for_checkpoints()
        if drawn:
            self.console.message(why)
        self.done = sum(job.record is not None for job in self.jobs)
        known = {failure.name for failure in self.failures}
        self.failures += [Failure(*one) for one in self.named.items() if one[0] not in known]
        self.named.clear()

    @property
    def drawn(self) -> bool:
        """Whether a cohort draws its table on this terminal; it would draw over other lines."""
        return any(task.shown for task in self.running)

    def add(self, jobs: list[Job], again: bool = False) -> None:
        """Queue a cohort."""
        self.number += 1
        self.waiting.append(Task(self.number, jobs, again))

    def begin(self) -> bool:
        """Start the cohorts that there is room for, and say so; return whether any was started."""
        tasks = self.choose(self.executor.room())
        for task in tasks:
            task.started = time.monotonic()
            for job in task.jobs:
                forget_failure(job.folder)
        started = self.executor.start(tasks) if tasks else 0
        for task in tasks[:started]:
            self.waiting.remove(task)
            self.running.append(task)
            self.started |= {job.identity.run_id for job in task.jobs}
            again = "tried once more, " if task.again else ""
            log = f"; output in {task.log}" if task.log is not None else ""
            self.console.message(f"cohort {task.number} starts: {again}{names(task.jobs)}{log}")
        return started > 0

    def choose(self, room: int) -> list[Task]:
        """Return the next cohorts, `room` at most; of each only what there is time for."""
        chosen: list[Task] = []
        for task in list(self.waiting):
            if len(chosen) == room:
                break
            fit = self.limit.fitting(task.jobs)
            if not fit:
                continue
            rest = [job for job in task.jobs if not any(job is one for one in fit)]
            if rest:
                self.number += 1
                later = Task(self.number, rest, task.again)
                self.waiting.insert(self.waiting.index(task) + 1, later)
                task.jobs = fit
            chosen.append(task)
        return chosen

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
                if not task.shown:  # its own process says so, above its table
                    print_error(f"{name} failed: {error}")

    def end(self, ended: Ended) -> None:
        """Count a cohort's results, and queue the runs that are worth another try."""
        task = ended.task
        self.listen(task)
        self.running.remove(task)
        log = f" (output in {task.log})" if task.log is not None else ""
        if ended.outcomes is None:
            again = self.fail(task, [(job, ended.reason) for job in task.jobs], [], set())
            print_error(f"cohort {task.number}, {names(task.jobs)}: {ended.reason}{log}")
        else:
            self.seconds += time.monotonic() - task.started
            self.limit.learn(task.jobs, time.monotonic() - task.started)
            self.epochs += task.epochs
            pairs = list(zip(task.jobs, ended.outcomes, strict=True))
            self.done += sum(found.error is None for _, found in pairs)
            failed = [(job, found.error) for job, found in pairs if found.error is not None]
            hopeless = [job for job, found in pairs if found.final]
            held = {job.identity.run_id for job, found in pairs if found.held and self.shared}
            for job, reason in failed:
                name = job.identity.run_id
                if name in held:
                    self.console.message(reason)
                elif task.shown or name not in self.named:
                    print_error(f"{name} failed: {reason}{log}")
            again = self.fail(task, failed, hopeless, held)
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
        self,
        task: Task,
        failed: Sequence[tuple[Job, str]],
        hopeless: Sequence[Job],
        held: Collection[str],
    ) -> list[Job]:
        """Keep the final failures, and the runs that are held; return the jobs to try once more."""
        once = task.again or self.fail_fast
        again = [job for job, _ in failed if not once and job not in hopeless]
        stand = [(job, reason) for job, reason in failed if job not in again]
        ended = [Failure(job.identity.run_id, reason) for job, reason in stand]
        self.failures += [one for one in ended if one.name not in held]
        self.held += [one for one in ended if one.name in held]
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
        if not self.drawn:
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
