"""kdbench's own classes, set up for a measurement: members, their cohort, their answers."""

import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.common import DEVICE, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, network
from kdbench.answers import choose_answers
from kdbench.build import build_method, set_up
from kdbench.cli import compose_group
from kdbench.console import Console
from kdbench.data.base import Dataset
from kdbench.data.views import TrainImages
from kdbench.loop import Cohort
from kdbench.member import Member, Run
from kdbench.optim import Schedule
from kdbench.runtime import Runtime
from kdbench.schema import check_node

LOGIT_METHODS = ("kd", "dkd", "dist", "ls_kd", "nkd", "ttm", "er_kd", "dynamickd")
SEED = 0


class Contestant:
    """A cohort of methods on one pair, whose epoch can be run again and again."""

    def __init__(
        self,
        methods: Sequence[str],
        student: str,
        teacher: nn.Module,
        data: Dataset,
        batch: int,
        answers: str,
        folder: Path,
    ) -> None:
        self.runtime = Runtime(
            channels_last=True, teacher=answers, table_dir=str(folder / "tables")
        )
        self.images = TrainImages(data.train.images, data.views, data.mean, data.std, DEVICE)
        teachers = {"teacher": teacher.to(DEVICE, memory_format=self.runtime.memory_format)}
        console, milestones = Console(), []
        schedule = Schedule(1, batch, LEARNING_RATE, milestones, 0.1, MOMENTUM, WEIGHT_DECAY)
        self.members = []
        for name in methods:
            method = build_method(check_node("method", compose_group("method", name)), SEED)
            body = set_up(method, network(student, data, SEED), teachers, data, SEED)
            run = Run(name, SEED, body, method, data, schedule, self.runtime, folder)
            self.members.append(Member(run, console, []))
        facts = {"teacher": {"teacher": "random weights", "network": type(teacher).__name__}}
        chosen = choose_answers(
            self.members, teachers, facts, data, self.images, self.runtime, folder
        )
        self.cohort = Cohort(self.members, list(teachers.values()), chosen, self.images, console)

    def epoch(self) -> None:
        """All steps of the first epoch, its plan and, with a table, its reading included.

        Raises:
            RuntimeError: a member failed, so that there is less to time.
        """
        self.cohort.step = 0
        self.cohort.each(lambda member: member.start_epoch(1))
        for batches in self.cohort.batches(1, threading.Event()):
            self.cohort.train_step(batches)
        for member in self.members:
            if member.error is not None:
                raise RuntimeError(f"{member.run.run_id} failed") from member.error

    def first_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of the first step."""
        self.cohort.step = 0
        batch = next(self.cohort.batches(1, threading.Event()))[1]
        return batch.images.contiguous().clone(), batch.labels

    def loss_of_first_step(self) -> float:
        """The first member's mean loss in the first step, which it takes."""
        self.cohort.step = 0
        self.cohort.each(lambda member: member.start_epoch(1))
        batch = next(self.cohort.batches(1, threading.Event()))
        before = self.members[0].position.sums.get("loss", 0.0)
        self.cohort.train_step(batch)
        loss = self.members[0].position.sums["loss"] - before
        return float(loss) / len(batch[1].labels)
