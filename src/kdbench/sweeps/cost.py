"""Estimates of what a sweep costs on this machine, before anything starts."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdbench.assembly.build import build_method, check_teachers
from kdbench.assembly.make import make
from kdbench.data.memory.synthetic import synthetic
from kdbench.errors import ConfigError, KdbenchError
from kdbench.methods.base import Method
from kdbench.records.checkpoint import checkpoint_paths
from kdbench.records.identity import REGIMES, canonical, teacher_label
from kdbench.records.settings import TrainSettings
from kdbench.schema.node import Node
from kdbench.system.console import duration
from kdbench.system.hardware import hardware
from kdbench.system.precision import advice, notices
from kdbench.system.runtime import Runtime
from kdbench.tasks.dispatch import task_called
from kdbench.training.grouping import LENGTH
from kdbench.training.jobs import Job, open_job
from kdbench.training.pace import Pace
from kdbench.training.timings import LIMIT, STEPS, Known, Timings, time_run
from kdbench.training.together import self_teacher

Say = Callable[[str], None]
DONE, RESUME, TODO, WAITS = "done", "to resume", "to do", "waiting for a teacher"
SIZES = {  # of downloaded data sets: classes, training images, test images
    "cifar10": (10, 50_000, 10_000),
    "cifar100": (100, 50_000, 10_000),
    "fashion_mnist": (10, 60_000, 10_000),
}


@dataclass
class Planned:
    """One run of the sweep."""

    config: TrainSettings  # with the teachers that the method reads
    name: str
    status: str
    why: str = ""  # reason for waiting
    left: float = 1.0  # share of its epochs still to train
    cached: bool = False  # the output cache holds all that its method reads

    @property
    def like(self) -> str:
        """A key that runs of equal duration share."""
        told = self.config.spelt()
        schedule = {key: told["schedule"][key] for key in ("batch_size", "precision")}
        networks = [node["network"] for node in told["teacher"].values()]
        return canonical([told["method"], told["student"], networks, schedule, told["dataset"]])

    @property
    def company(self) -> str:
        """A key that runs share which can train side by side on the same teacher outputs."""
        schedule = {key: self.config.schedule.settings.get(key) for key in ("batch_size", *LENGTH)}
        views = 1 if self.cached else build_method(self.config.method, 0).views
        return canonical([self.cache, self.config.seed, schedule, self.cached, views])

    @property
    def cache(self) -> str:
        """A key that runs share which read one output cache."""
        told = self.config.spelt()
        return canonical([told["teacher"], told["dataset"]])


def estimate(configs: Sequence[TrainSettings], names: bool, say: Say, progress: Say) -> None:
    """Say which runs there are to do, and what they cost alone and side by side.

    Args:
        configs: the runs' configurations.
        names: name each run.
        say: takes the lines of the estimate.
        progress: takes a line for each method that is timed.

    Raises:
        KdbenchError: a configuration that could not be trained.
    """
    runtime: Runtime = make(configs[0].runtime, "runtime")
    runtime.apply()
    datasets: dict[str, Any] = {}
    plans: dict[str, Planned] = {}
    for config in configs:
        key = canonical(config.dataset.spelt())
        if key not in datasets:
            datasets[key] = data_or_placeholder(config.dataset, say)
        for plan in planned(config, datasets[key]):
            plans.setdefault(plan.name, plan)
    runs = list(plans.values())
    say_counts(runs, say)
    todo = [run for run in runs if run.status != DONE]
    if todo:
        timings = time_each(todo, datasets, runtime, progress)
        machine = hardware(runtime.device)
        say(
            f"{machine.get('gpu', machine['cpu'])}, {machine['threads']} threads, teachers with "
            f"random weights, {STEPS} timed steps each at most"
        )
        say_costs(todo, timings, datasets, say)
        for precision in sorted({run.config.spelt()["schedule"]["precision"] for run in todo}):
            for line in (*notices(precision, runtime.device), *advice(precision, runtime.device)):
                say(line)
    if names:
        say_names(runs, say)


def time_each(
    runs: Sequence[Planned], datasets: dict[str, Any], runtime: Runtime, progress: Say
) -> dict[str, Timings]:
    """Time each distinct configuration, by `Planned.like`."""
    timings: dict[str, Timings] = {}
    known, started = Known(), time.monotonic()
    distinct = {run.like: run for run in reversed(runs)}
    for number, (like, run) in enumerate(reversed(distinct.items()), start=1):
        name = run.config.method.name
        each = (time.monotonic() - started) / (number - 1) if number > 1 else 2 * LIMIT
        left = duration(each * (len(distinct) - number + 1))
        progress(f"timing {number} of {len(distinct)}, about {left} left: {name}")
        dataset = datasets[canonical(run.config.dataset.spelt())]
        timings[like] = time_run(run.config, dataset, runtime, known)
    return timings


def data_or_placeholder(node: Node, say: Say) -> Any:
    """Make the data set, or a placeholder of random images where its files are missing.

    Raises:
        KdbenchError: its files are not there, and its size is not known without them.
    """
    try:
        return make(node, "dataset")
    except ConfigError:
        raise
    except KdbenchError as error:
        if node.name not in SIZES:
            raise
        say(f"{error}\n{node.name} is stood in for by random images: no run is known as done")
    classes, train, test = SIZES[node.name]
    kept = {
        key: node.settings[key] for key in ("mean", "std", "pad", "flip", "val_split", *REGIMES)
    }
    return synthetic(classes, train, test, image_size=32, seed=0, **kept)


def planned(config: TrainSettings, dataset: Any) -> Iterable[Planned]:
    """Yield the run that a configuration describes, after the teachers that it trains first."""
    runs_dir = Path(config.runs_dir)
    method = build_method(config.method, config.seed)
    teachers = dict(config.teacher) if method.num_teachers != 0 else {}
    check_teachers(config.method.name, method, len(teachers))
    for name, teacher in teachers.items():
        if teacher.checkpoint == "train":
            (before,) = planned(self_teacher(config, teacher), dataset)
            yield before
            if before.status == DONE:
                teachers[name] = replace(teacher, checkpoint=str(runs_dir / before.name))
    config = replace(config, teacher=teachers)
    try:
        job = open_job(config, dataset, runs_dir)
    except KdbenchError as error:
        labels = "+".join(teacher_label(name, one.network) for name, one in teachers.items())
        parts = [dataset.name, labels, config.student.name, config.method.name]
        name = f"{'-'.join(parts)}-s{config.seed}"
        first = any(one.checkpoint == "train" for one in teachers.values())
        why = "it is trained first, by the run's own recipe" if first else str(error)
        yield Planned(config, name, WAITS, why, cached=is_cached(config, method, dataset))
        return
    yield of_job(job, dataset)


def of_job(job: Job, dataset: Any) -> Planned:
    """Return the plan of a run that is identified: its status, and how much of it is left."""
    config, name = job.config, job.identity.run_id
    if job.record is not None:
        return Planned(config, name, DONE, left=0.0)
    cached = is_cached(config, job.method, dataset)
    found = checkpoint_paths(job.folder)
    steps = pace_of(config, dataset).steps
    left = 1 - int(found[-1].stem.rpartition("-")[2]) / steps if found else 1.0
    return Planned(config, name, RESUME if found else TODO, left=left, cached=cached)


def is_cached(config: TrainSettings, method: Method, dataset: Any) -> bool:
    """Return whether all that a run's method reads of its teachers can be in the output cache."""
    return bool(config.teacher) and task_called(config.task).caches(
        method, dataset, make(config.schedule, "schedule")
    )


def say_counts(runs: Sequence[Planned], say: Say) -> None:
    """Say how many runs there are of each status."""
    counts = {status: 0 for status in (DONE, RESUME, TODO, WAITS)}
    for run in runs:
        counts[run.status] += 1
    kinds = ", ".join(f"{count} {status}" for status, count in counts.items())
    say(f"{len(runs)} runs: {kinds}")
    for why in dict.fromkeys(run.why for run in runs if run.why):
        say(f"a teacher is not there: {why}")


def say_names(runs: Sequence[Planned], say: Say) -> None:
    """Say a line for each run."""
    say("")
    for run in runs:
        percent = f", {100 * run.left:.0f}% left" if run.status == RESUME else ""
        say(f"  {run.name:<48} {run.status}{percent}")


def parts(run: Planned, timings: Timings, dataset: Any) -> tuple[float, float]:
    """Return the seconds left of a run: the student's part, and the live teachers' part."""
    pace = pace_of(run.config, dataset)
    rows = math.ceil(pace.steps / pace.row_steps)
    own = pace.steps * timings.step + rows * dataset.scored * timings.evaluation
    return run.left * own, run.left * pace.steps * timings.teachers


def pace_of(config: TrainSettings, dataset: Any) -> Pace:
    """Return the steps of a run on its data."""
    return Pace(make(config.schedule, "schedule"), dataset.images)


def filling(run: Planned, timings: Timings, dataset: Any) -> float:
    """Return the seconds to fill an empty output cache with all rows that the run reads."""
    schedule, views = run.config.schedule.settings, dataset.views.count
    asked = 1 - (1 - 1 / views) ** schedule["epochs"]
    images = dataset.images * views * asked
    return images * timings.teachers / min(schedule["batch_size"], dataset.images)


def say_costs(
    runs: Sequence[Planned],
    timings: dict[str, Timings],
    datasets: dict[str, Any],
    say: Say,
) -> None:
    """Say the totals, alone and side by side, and a line for each method."""
    alone: dict[str, float] = {}
    beside: dict[str, float] = {}
    number: dict[str, int] = {}
    per_step: dict[str, Timings] = {}
    shared: dict[str, float] = {}  # teacher forwards of a cohort, or the filling of a cache
    for run in runs:
        name, found = run.config.method.name, timings[run.like]
        dataset = datasets[canonical(run.config.dataset.spelt())]
        own, live = parts(run, found, dataset)
        number[name] = number.get(name, 0) + 1
        alone[name] = alone.get(name, 0.0) + own + live
        beside[name] = beside.get(name, 0.0) + own
        per_step[name] = found
        key = run.cache if run.cached else run.company
        cost = filling(run, found, dataset) if run.cached else live
        shared[key] = max(shared.get(key, 0.0), cost)
    total, together = sum(alone.values()), sum(beside.values()) + sum(shared.values())
    say(f"one run after another, teachers live:       {duration(total)}")
    say(
        f"in cohorts of a seed, with cached outputs:  {duration(together)}, of which the teachers "
        f"{duration(sum(shared.values()))}"
    )
    heads = f"{'ms a step':>10} {'teacher ms':>11} {'alone':>9} {'beside':>9}"
    say(f"\n{'method':<26} {'runs':>5} {heads}")
    for name, count in number.items():
        step, teachers, _ = per_step[name]
        say(
            f"{name:<26} {count:>5} {1000 * step:>10.1f} {1000 * teachers:>11.1f} "
            f"{duration(alone[name]):>9} {duration(beside[name]):>9}"
        )
    say("(ms a step: with teacher outputs at hand; beside: without the teachers, which are shared)")
