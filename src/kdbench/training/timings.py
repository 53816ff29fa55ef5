"""The time of a run on this machine, from a few steps of its networks on a piece of the data."""

import dataclasses
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from kdbench.assembly.build import build_method
from kdbench.assembly.make import make
from kdbench.records.identity import canonical
from kdbench.records.settings import TrainSettings
from kdbench.system.console import Console
from kdbench.system.cuda_graphs import WARM_UP
from kdbench.system.runtime import Runtime
from kdbench.system.stopwatch import seconds_of
from kdbench.tasks.dispatch import task_called
from kdbench.tasks.task import LiveTeachers, Task
from kdbench.training.cohort import Cohort
from kdbench.training.member import Member
from kdbench.training.pace import AnySchedule
from kdbench.training.schedule import Schedule
from kdbench.training.together import company_of

STEPS = 3  # timed steps of each configuration at most; their median counts
LIMIT = 2.0  # seconds of a part after which no further step is timed; one always is
SMALL_LR = 1e-4  # keeps random networks from diverging meanwhile


class Timings(NamedTuple):
    """The seconds that parts of a configuration take on this machine."""

    step: float  # cutting a batch and updating the student, with teacher outputs at hand
    teachers: float  # the live teachers' forward on a batch
    evaluation: float  # scoring one image


@dataclass
class Known:
    """What runs have in common, by what it depends on: made or timed for the first of them."""

    seconds: dict[str, float] = field(default_factory=dict)
    teachers: dict[str, tuple[dict[str, nn.Module], LiveTeachers]] = field(default_factory=dict)


def time_run(
    config: TrainSettings, data: Any, runtime: Runtime, known: Known | None = None
) -> Timings:
    """Time a run's parts; its teachers have random weights, and are not compiled.

    Parts in `known` were timed for earlier runs and are not timed again; new ones are added to it.
    """
    known = known or Known()
    schedule: AnySchedule = make(config.schedule, "schedule")
    if isinstance(schedule, Schedule):
        schedule = dataclasses.replace(schedule, lr=SMALL_LR, min_lr=0.0)
    else:
        schedule = dataclasses.replace(schedule, lr=SMALL_LR)
    kind = task_called(config.task)
    task = kind.rehearsal(data, schedule.batch_size, runtime, schedule.precision)
    console, told = Console(), config.spelt()
    common = [told["dataset"], schedule.batch_size, schedule.precision]
    key = canonical([*common, told["teacher"]])
    if key not in known.teachers:
        networks = teachers_of(config, task)
        known.teachers[key] = networks, task.live([*networks.values()], console.message)
    networks, live = known.teachers[key]
    method = build_method(config.method, config.seed)
    own = task.build_student(config.student, config.seed)
    student = task.set_up(method, own, networks, config.seed)
    what = "timing", config.seed, student, method, task, schedule
    member = Member(*what, Path(), console, [])
    batches = task.batches_with(company_of([member]), live)
    cohort = Cohort([member], batches, console)
    cohort.each(Member.start_row)
    _, inputs = next(next(batches.steps(0, 1, [method], never)).parts)
    first, _ = inputs(method)
    step = _median(lambda: _one_step(cohort), runtime.device)
    key = canonical(["teachers", *common, told["teacher"], method.views])
    if networks and key not in known.seconds:
        known.seconds[key] = _median(lambda: live.outputs(first), runtime.device)
    forward = known.seconds[key] if networks else 0.0
    changed = None if student is own else told["method"]
    key = canonical(["evaluation", *common, told["student"], changed])
    if key not in known.seconds:
        known.seconds[key] = _median(lambda: task.score(member.scored()), runtime.device)
    return Timings(step, forward, known.seconds[key] / task.data.scored)


def teachers_of(config: TrainSettings, task: Task) -> dict[str, nn.Module]:
    """Make the run's teachers as the training loop does, but with random weights."""
    found = {}
    for name, teacher in config.teacher.items():
        network = task.build_network(teacher.network).eval().requires_grad_(False)
        runtime = task.runtime
        found[name] = network.to(runtime.device).to(memory_format=runtime.memory_format)
    return found


def never() -> bool:
    """Return False: nothing stops a timed step."""
    return False


def _one_step(cohort: Cohort) -> None:
    """Train an epoch of one batch, from cutting it to the update."""
    methods = [member.method for member in cohort.members]
    for step in cohort.batches.steps(0, 1, methods, never):
        cohort.train_step(step)
    for member in cohort.members:
        if member.error is not None:
            raise member.error


def _median(call: Callable[[], object], device: torch.device) -> float:
    """Return a call's median seconds, without the first calls, which choose kernels or record."""
    for _ in range(WARM_UP + 2 if device.type == "cuda" else 1):
        call()
    found: list[float] = []
    while len(found) < STEPS and sum(found) < LIMIT:
        found.append(seconds_of(call, device))
    return statistics.median(found)
