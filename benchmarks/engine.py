"""kdbench's own classes, set up for a measurement: members, their cohort, their outputs."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from benchmarks.common import DEVICE, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, network
from kdbench.assembly.build import build_method, set_up
from kdbench.config.hydra_cli import compose_group
from kdbench.data.augmentation.views import TrainImages
from kdbench.data.base import Dataset
from kdbench.schema.check import check_node
from kdbench.system.console import Console
from kdbench.system.precision import Precision, allow_tf32
from kdbench.system.runtime import Runtime
from kdbench.teachers.outputs import choose_outputs
from kdbench.training.cohort import Cohort
from kdbench.training.member import Member, Run
from kdbench.training.schedule import Schedule
from kdbench.training.together import use_of

LOGIT_METHODS = ("kd", "dkd", "dist", "ls_kd", "nkd", "ttm", "er_kd", "dynamickd")
SEED = 0


@dataclass(frozen=True)
class Bench:
    """What the contestants of one measurement share."""

    student: str
    teacher: nn.Module
    data: Dataset
    batch: int
    folder: Path
    run_images: int  # see `Sizes`
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        """Bring the teacher where the engine would."""
        self.teacher.to(DEVICE, memory_format=torch.channels_last)

    @cached_property
    def images(self) -> TrainImages:
        """The training images on the device."""
        data = self.data
        return TrainImages(data.train.images, data.views, data.mean, data.std, DEVICE)

    def member(self, name: str, runtime: Runtime) -> Member:
        """A run of a method."""
        method = build_method(check_node("method", compose_group("method", name)), SEED)
        body = network(self.student, self.data, SEED)
        body = set_up(method, body, {"teacher": self.teacher}, self.data, SEED)
        epochs = max(1, self.run_images // len(self.data.train.labels))
        recipe = epochs, self.batch, LEARNING_RATE, [], 0.1, MOMENTUM, WEIGHT_DECAY
        schedule = Schedule(*recipe, precision=self.precision)
        run = Run(name, SEED, body, method, self.data, schedule, runtime, self.folder)
        return Member(run, Console(), [])


class Contestant:
    """A cohort of methods on one pair, whose epoch can be run again and again.

    `outputs` is "live", "table", or another contestant whose teachers it shares.
    """

    def __init__(self, methods: Sequence[str], bench: Bench, outputs: "str | Contestant") -> None:
        kind = outputs if isinstance(outputs, str) else outputs.runtime.teacher
        self.runtime = Runtime(
            channels_last=True,
            teacher=kind,
            table_dir=str(bench.folder / "tables"),
        )
        self.runtime.apply()
        allow_tf32(bench.precision == "tf32")
        self.members = [bench.member(name, self.runtime) for name in methods]
        facts = {"teacher": {"teacher": "random weights", "network": "random weights"}}
        if isinstance(outputs, str):
            named, images = {"teacher": bench.teacher}, bench.images
            given = bench.data, images, self.runtime, bench.folder
            self.outputs, _ = choose_outputs(use_of(self.members), named, facts, *given, print)
        else:
            self.outputs = outputs.outputs
        self.cohort = Cohort(self.members, self.outputs, bench.images, Console())

    def epoch(self) -> None:
        """All steps of the first epoch, its plan and, with a table, its reading included.

        Raises:
            RuntimeError: a member failed, so that there is less to time.
        """
        self.cohort.step = 0
        self.cohort.each(lambda member: member.start_epoch(1))
        for step in self.cohort.steps(1, threading.Event()):
            self.cohort.train_step(step)
        for member in self.members:
            if member.error is not None:
                raise RuntimeError(f"{member.run.run_id} failed") from member.error

    def first_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of the first step."""
        self.cohort.step = 0
        _, views = next(next(self.cohort.steps(1, threading.Event())).parts)
        batch = views[1]
        return batch.images.contiguous().clone(), batch.labels

    def loss_of_first_step(self) -> float:
        """The first member's mean loss in the first step, which it takes."""
        self.cohort.step = 0
        self.cohort.each(lambda member: member.start_epoch(1))
        step = next(self.cohort.steps(1, threading.Event()))
        before = self.members[0].position.sums.get("loss", 0.0)
        self.cohort.train_step(step)
        loss = self.members[0].position.sums["loss"] - before
        return float(loss) / len(step.images)
