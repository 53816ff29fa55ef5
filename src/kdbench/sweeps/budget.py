"""The time that a sweep may take, and the runs that end within it."""

import time
from collections.abc import Sequence
from typing import Protocol

import torch

from kdbench.assembly.make import make
from kdbench.data.base import Dataset
from kdbench.errors import KdbenchError
from kdbench.records.identity import canonical
from kdbench.sweeps.cost import Planned, filling, of_job, parts
from kdbench.sweeps.planning import load, runs
from kdbench.system.console import Console, duration
from kdbench.system.runtime import Runtime
from kdbench.training.jobs import Job
from kdbench.training.timings import Known, Timings, time_run

START_UP = 10.0  # seconds until a cohort's process trains: it imports torch and loads the data


class Limit(Protocol):
    """What a sweep has time for."""

    @property
    def spent(self) -> bool:
        """Whether the time is over."""

    def fitting(self, jobs: Sequence[Job]) -> list[Job]:
        """Return those of the jobs, in order, that end in time when they train side by side."""

    def learn(self, jobs: Sequence[Job], seconds: float) -> None:
        """Learn how long a cohort took."""


class Unlimited:
    """All the time in the world."""

    spent = False

    def fitting(self, jobs: Sequence[Job]) -> list[Job]:
        """Return all of the jobs."""
        return list(jobs)

    def learn(self, jobs: Sequence[Job], seconds: float) -> None:
        """Do nothing."""


class Budget:
    """Some minutes from now on, by a clock that nobody sets.

    A run's cost is that of a few real steps of its configuration on this machine, taken when its
    turn comes, times the ratio of what cohorts have taken and were thought to take.

    Args:
        minutes: how long the sweep may take.
        console: takes a line for each configuration that is timed.
    """

    def __init__(self, minutes: float, console: Console) -> None:
        self.minutes, self.console = minutes, console
        self.ends = time.monotonic() + 60 * minutes
        self.known, self.timings = Known(), dict[str, Timings | None]()
        self.planned: dict[str, Planned] = {}
        self.datasets: dict[str, Dataset | KdbenchError] = {}
        self.runtimes: dict[str, Runtime] = {}
        self.taken = self.thought = 0.0  # seconds of the cohorts that have ended

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return self.ends - time.monotonic()

    @property
    def spent(self) -> bool:
        """Return whether the time is over."""
        return self.left <= 0

    @property
    def pace(self) -> float:
        """Return how many seconds one estimated second takes."""
        return self.taken / self.thought if self.thought else 1.0

    def fitting(self, jobs: Sequence[Job]) -> list[Job]:
        """Return those of the jobs, in order, that end in time when they train side by side.

        One that cannot be timed is among them: it fails by itself, and its reason is said.
        """
        chosen: list[Job] = []
        for job in jobs:
            if not self.spent and self.seconds([*chosen, job]) <= self.left:
                chosen.append(job)
        return chosen

    def learn(self, jobs: Sequence[Job], seconds: float) -> None:
        """Learn how long a cohort took, from its start to its end."""
        self.thought += self._estimate(jobs)
        self.taken += seconds

    def seconds(self, jobs: Sequence[Job]) -> float:
        """Return the seconds that runs take side by side, from the start of their process."""
        return self.pace * self._estimate(jobs)

    def _estimate(self, jobs: Sequence[Job]) -> float:
        own, shared = 0.0, 0.0
        for job in jobs:
            plan, found = self._planned(job), self._timings(job)
            if found is not None:
                dataset = self._dataset(job)
                mine, live = parts(plan, found, dataset)
                own += mine
                shared = max(shared, filling(plan, found, dataset) if plan.cached else live)
        return START_UP + own + shared

    def _planned(self, job: Job) -> Planned:
        name = job.identity.run_id
        if name not in self.planned:
            self.planned[name] = of_job(job, self._dataset(job))
        return self.planned[name]

    def _dataset(self, job: Job) -> Dataset:
        return load(job.config.dataset, self.datasets)

    def _timings(self, job: Job) -> Timings | None:
        """Return the timings of a job's configuration; None where it cannot be timed."""
        like = self._planned(job).like
        if like not in self.timings:
            self.console.message(f"timing {job.config.method.name}")
            try:
                runtime = self._runtime(job)
                self.timings[like] = time_run(job.config, self._dataset(job), runtime, self.known)
            except Exception:  # of anybody's method; the run itself will say it
                self.timings[like] = None
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()  # the memory is for the processes that train
        return self.timings[like]

    def _runtime(self, job: Job) -> Runtime:
        key = canonical(job.config.runtime.spelt())
        if key not in self.runtimes:
            self.runtimes[key] = make(job.config.runtime, "runtime")
            self.runtimes[key].apply()
        return self.runtimes[key]

    def check(self, late: Sequence[Job]) -> None:
        """Refuse a budget in which no run could be started.

        Raises:
            KdbenchError: names the cheapest of `late` that was timed, and what it costs.
        """
        line = f"hydra.launcher.minutes={self.minutes:g} is too short"
        timed = self.timed(late)
        if not timed:
            raise KdbenchError(f"{line} to time a single run: give more")
        cheapest = min(timed, key=lambda job: self.seconds([job]))
        what = "cheapest" if len(timed) == len(late) else "cheapest that was timed"
        raise KdbenchError(
            f"{line} for any of {runs(len(late))}: the {what}, {cheapest.identity.run_id}, takes "
            f"about {duration(self.seconds([cheapest]))} on this machine"
        )

    def forget(self) -> None:
        """Forget how much of each run is left, since some have trained."""
        self.planned.clear()

    def timed(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs whose cost is known."""
        return [job for job in jobs if self.timings.get(self._planned(job).like) is not None]
