"""The time of a run on this machine, from a few steps of its networks on a piece of the data."""

import dataclasses
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdbench.assembly.build import build_method, build_network, build_student, fit
from kdbench.assembly.make import make
from kdbench.assembly.probes import TrainingSet, training_set
from kdbench.data.base import Dataset, Split
from kdbench.data.streaming.streamed import images_of
from kdbench.records.identity import canonical
from kdbench.records.settings import TrainSettings
from kdbench.system.console import Console
from kdbench.system.cuda_graphs import WARM_UP
from kdbench.system.runtime import Runtime
from kdbench.teachers.frozen import CHUNK, freeze
from kdbench.teachers.outputs import LiveTeachers
from kdbench.training.cohort import Cohort
from kdbench.training.member import Member
from kdbench.training.schedule import Schedule
from kdbench.types import Batch, Output

STEPS = 3  # timed steps of each configuration at most; their median counts
LIMIT = 2.0  # seconds of a part after which no further step is timed; one always is
TEST_IMAGES = 512  # the images of a timed evaluation
SMALL_LR = 1e-4  # keeps random networks from diverging meanwhile


class Timings(NamedTuple):
    """The seconds that parts of a configuration take on this machine."""

    step: float  # cutting a batch and updating the student, with teacher outputs at hand
    teachers: float  # the live teachers' forward on a batch
    evaluation: float  # scoring one image


class OutputsAtHand:
    """A placeholder for a filled output cache: every batch gets the outputs of the first one."""

    def __init__(self, live: LiveTeachers) -> None:
        self.live = live
        self.kept: dict[int, dict[int, tuple[Output, ...]]] = {}

    def start_epoch(self, view: Tensor, stopped: Callable[[], bool]) -> None:
        """Do nothing: no outputs are prepared."""

    def by_views(self, batch: Batch) -> dict[int, tuple[Output, ...]]:
        """Return all teachers' outputs on the first batch with that many views."""
        views = batch.images.ndim
        if views not in self.kept:
            self.kept[views] = self.live.by_views(batch)
        return self.kept[views]


@dataclass
class Known:
    """What runs have in common, by what it depends on: made or timed for the first of them."""

    seconds: dict[str, float] = field(default_factory=dict)
    teachers: dict[str, tuple[dict[str, nn.Module], LiveTeachers]] = field(default_factory=dict)


def time_run(
    config: TrainSettings, dataset: Dataset, runtime: Runtime, known: Known | None = None
) -> Timings:
    """Time a run's parts; its teachers have random weights, and are not compiled.

    Parts in `known` were timed for earlier runs and are not timed again; new ones are added to it.
    """
    known = known or Known()
    schedule: Schedule = make(config.schedule, "schedule")
    schedule = dataclasses.replace(schedule, lr=SMALL_LR)
    data = piece(dataset, schedule.batch_size)
    images = images_of(data, runtime.device)
    console = Console()
    told = config.spelt()
    common = [told["dataset"], schedule.batch_size, schedule.precision]
    key = canonical([*common, told["teacher"]])
    if key not in known.teachers:
        networks = teachers_of(config, data, runtime)
        rows = torch.zeros(min(CHUNK, 2), dtype=torch.int64).to(runtime.device)
        given = images.batch(rows, rows), schedule.precision, runtime, 0, console.message
        frozen = [freeze(network, *given) for network in networks.values()]
        known.teachers[key] = networks, LiveTeachers(frozen, runtime, console.message)
    networks, live = known.teachers[key]
    method = build_method(config.method, config.seed)
    own = build_student(config.student, data, config.seed)
    student = fit(method, own, networks, of_every_class(data), config.seed)
    what = "timing", config.seed, student, method, data, schedule
    member = Member(*what, runtime, Path(), console, [])
    cohort = Cohort([member], OutputsAtHand(live), images, console)
    cohort.each(lambda one: one.start_epoch(1))
    _, views = next(next(cohort.steps(1, threading.Event())).parts)
    first = views[method.views]
    step = _median(lambda: _one_step(cohort), runtime.device)
    key = canonical(["teachers", *common, told["teacher"], method.views])
    if networks and key not in known.seconds:
        known.seconds[key] = _median(lambda: live.outputs(first), runtime.device)
    forward = known.seconds[key] if networks else 0.0
    changed = None if student is own else told["method"]
    key = canonical(["evaluation", *common, told["student"], changed])
    if key not in known.seconds:
        known.seconds[key] = _median(lambda: member.score(data.test), runtime.device)
    return Timings(step, forward, known.seconds[key] / len(data.test.labels))


def of_every_class(data: Dataset) -> TrainingSet:
    """Return what a method sees of a piece as if it had two images of every class, as all data."""
    known, count = training_set(data), len(data.train.labels)
    labels = torch.arange(max(2 * data.num_classes, count)) % data.num_classes
    images = known.images
    assert images is not None
    return known._replace(labels=labels, images=lambda rows: images(rows % count))


def piece(dataset: Dataset, batch: int) -> Dataset:
    """Return a data set of one full training batch and some test images."""
    count = min(batch, len(dataset.train.labels))
    train, test = first(dataset.train, count), first(dataset.test, TEST_IMAGES)
    return dataclasses.replace(dataset, train=train, test=test, val=None)


def first(split: Split, count: int) -> Split:
    """Return the first `count` images of a split, or all where there are fewer."""
    count = min(count, len(split.labels))
    return Split(split.images.narrow(0, 0, count), split.labels[:count])


def teachers_of(config: TrainSettings, dataset: Dataset, runtime: Runtime) -> dict[str, nn.Module]:
    """Make the run's teachers as the training loop does, but with random weights."""
    found = {}
    for name, teacher in config.teacher.items():
        network = build_network(teacher.network, dataset).eval().requires_grad_(False)
        found[name] = network.to(runtime.device).to(memory_format=runtime.memory_format)
    return found


def _one_step(cohort: Cohort) -> None:
    """Train an epoch of one batch, from cutting it to the update."""
    cohort.step = 0
    for step in cohort.steps(1, threading.Event()):
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
        found.append(_seconds(call, device))
    return statistics.median(found)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
