"""kdbench's own classes, set up for a measurement: members, their cohort, their outputs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from benchmarks.common import DEVICE, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, network
from kdbench.assembly.build import build_method
from kdbench.config.hydra_cli import compose_group
from kdbench.data.base import Dataset
from kdbench.schema.check import check_node
from kdbench.system.console import Console
from kdbench.system.precision import Precision, allow_tf32
from kdbench.system.runtime import Runtime
from kdbench.tasks.classification.batches import SharedBatches
from kdbench.tasks.classification.task import Classification
from kdbench.tasks.task import Step
from kdbench.teachers.outputs import Use, choose_outputs
from kdbench.training.cohort import Cohort
from kdbench.training.member import Member
from kdbench.training.schedule import Schedule
from kdbench.training.together import company_of

LOGIT_METHODS = ("kd", "dkd", "dist", "ls_kd", "nkd", "ttm", "er_kd", "dynamickd")
SEED = 0
Answers = Literal["live", "table"]  # where those of the teachers are from
Choice = Literal["auto", "on", "off"]
ANSWERS: tuple[Answers, ...] = ("live", "table")


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
    fused: Choice = "auto"
    compile: Choice = "auto"

    def __post_init__(self) -> None:
        """Bring the teacher where the engine would."""
        self.teacher.to(DEVICE).to(memory_format=torch.channels_last)

    def member(self, name: str, task: Classification) -> Member:
        """A run of a method."""
        method = build_method(check_node("method", compose_group("method", name)), SEED)
        body = network(self.student, self.data, SEED)
        body = task.set_up(method, body, {"teacher": self.teacher}, SEED)
        milestones: list[int] = []
        recipe = self.epochs, self.batch, LEARNING_RATE, milestones, 0.1, MOMENTUM, WEIGHT_DECAY
        schedule = Schedule(*recipe, precision=self.precision)
        return Member(name, SEED, body, method, task, schedule, self.folder, Console(), [])

    @property
    def epochs(self) -> int:
        """The epochs of a whole run."""
        return max(1, self.run_images // len(self.data.train.labels))


class Contestant:
    """A cohort of methods on one pair, whose epoch can be run again and again.

    `outputs` is "live", "table", or another contestant whose teachers it shares.
    """

    runtime: Runtime

    def __init__(
        self, methods: Sequence[str], bench: Bench, outputs: "Answers | Contestant"
    ) -> None:
        kind = outputs if isinstance(outputs, str) else outputs.runtime.teacher
        self.runtime = Runtime(
            channels_last=True,
            teacher=kind,
            table_dir=str(bench.folder / "tables"),
            fused=bench.fused,
            compile=bench.compile,
        )
        self.runtime.apply()
        allow_tf32(bench.precision == "tf32")
        task = Classification(bench.data, self.runtime, bench.precision)
        self.members = [bench.member(name, task) for name in methods]
        company = company_of(self.members)
        if isinstance(outputs, str):
            facts = {"teacher": {"teacher": "random weights", "network": "random weights"}}
            use = Use(company.methods, bench.epochs, bench.precision, "fp32")
            given = bench.data, task.cut, self.runtime, bench.folder, print
            self.outputs, self.infinite = choose_outputs(
                use, {"teacher": bench.teacher}, facts, *given
            )
        else:
            self.outputs, self.infinite = outputs.outputs, outputs.infinite
        given_batches = bench.data, task.cut, self.outputs, self.infinite
        self.batches = SharedBatches(company, *given_batches, self.runtime.memory_format)
        self.cohort = Cohort(self.members, self.batches, Console())

    def steps(self, count: int) -> Iterator[Step]:
        """The first steps of the first epoch; every member starts over."""
        self.cohort.step = 0
        for member in self.members:
            member.state.step, member.state.sums = 0, {}
        self.cohort.each(Member.start_row)
        methods = [member.method for member in self.members]
        return self.batches.steps(0, count, methods, lambda: False)

    def epoch(self) -> None:
        """All steps of the first epoch, its plan and, with a table, its reading included.

        Raises:
            RuntimeError: a member failed, so that there is less to time.
        """
        for step in self.steps(self.batches.epoch_steps):
            self.cohort.train_step(step)
        for member in self.members:
            if member.error is not None:
                raise RuntimeError(f"{member.run_id} failed") from member.error

    def first_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of the first step."""
        _, inputs = next(next(self.steps(1)).parts)
        batch, _ = inputs(self.members[0].method)
        return batch.images.contiguous().clone(), batch.labels

    def loss_of_first_step(self) -> float:
        """The first member's mean loss in the first step, which it takes."""
        step = next(self.steps(1))
        self.cohort.train_step(step)
        return float(self.members[0].state.sums["loss"]) / len(step.images)
