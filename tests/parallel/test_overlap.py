"""Sums over the ranks that run while a backward pass does: what goes out when, what comes out."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn

import kdbench.parallel.overlap
from chaos.compare import differences
from kdbench.assembly.build import build_method
from kdbench.errors import RankError
from kdbench.parallel.micro_batches import Cutting
from kdbench.parallel.overlap import Overlap
from kdbench.parallel.ranks import Ranks
from kdbench.parallel.torchrun import Place
from kdbench.tasks.classification.losses import losses_and_sums
from kdbench.training.accumulation import Accumulation
from kdbench.training.optimizer import Optimizer
from kdbench.training.schedule import Schedule
from kdbench.training.snapshot import TrainState
from kdbench.training.together import train, train_together
from kdbench.types import Batch, Output
from support.commands import compose_method
from support.ranks import COHORTS, as_ranks, ended, write_plan
from support.runs import config

TWO = Ranks(Place(0, 2))


class Work(NamedTuple):
    """A message to the other rank, which sends the same: what is in it is doubled."""

    flat: torch.Tensor

    def wait(self) -> None:
        self.flat.mul_(2)


class Wire:
    """The messages so far; `look` runs at each."""

    def __init__(self) -> None:
        self.sent: list[torch.Tensor] = []
        self.look: Callable[[], None] = lambda: None

    def all_reduce(self, flat: torch.Tensor, async_op: bool) -> Work:
        self.look()
        self.sent.append(flat)
        return Work(flat)

    def take(self) -> list[int]:
        """How many numbers each had, since the last time."""
        sizes = [flat.numel() for flat in self.sent]
        self.sent.clear()
        return sizes


@pytest.fixture
def wire(monkeypatch) -> Wire:
    found = Wire()
    monkeypatch.setattr(dist, "all_reduce", found.all_reduce)
    return found


@pytest.fixture
def small(monkeypatch) -> None:
    """Each gradient is a message."""
    monkeypatch.setattr(kdbench.parallel.overlap, "SIZES", (1, 1))


class Layers(nn.Module):
    """A student of two layers, and one that nothing depends on unless it is `used`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(6)
        self.first, self.spare, self.second = (nn.Linear(6, n, bias=False) for n in (6, 6, 3))
        self.used = False

    def forward(self, images: torch.Tensor) -> Output:
        pooled = self.first(self.norm(images.flatten(1))).tanh()
        pooled = self.spare(pooled) if self.used else pooled
        return Output(self.second(pooled), {"pooled": pooled})


def images() -> torch.Tensor:
    return torch.randn(4, 6, 1, 1, generator=torch.Generator().manual_seed(1))


def backward(overlap: Overlap, student: Layers) -> None:
    student.zero_grad(set_to_none=True)
    overlap.watch()
    student(images()).logits.square().sum().backward()


def test_gradients_go_out_while_the_first_layers_are_still_differentiated(wire, small):
    student, rest = Layers(), torch.ones(2)
    overlap, missing = Overlap(TWO, [*student.parameters()]), []
    backward(overlap, student)
    assert wire.take() == []  # which have gradients is not known yet
    overlap.flush()
    assert wire.take() == [18 + 36 + 12]
    overlap.finish([rest])
    assert wire.take() == [2]
    wire.look = lambda: missing.append([p.grad is None for p in student.parameters()])
    backward(overlap, student)
    assert wire.take() == [18, 36, 6, 6]
    weight, bias, first, _, second = range(5)
    assert [missing[0][i] for i in (weight, bias, first, second)] == [True, True, True, False]
    assert [missing[1][i] for i in (weight, bias, first, second)] == [True, True, False, False]
    overlap.flush()
    overlap.finish([rest])
    assert wire.take() == [2]
    assert rest.tolist() == [4, 4]


def test_parameters_may_come_and_go_between_steps(wire, small):
    student, plain = Layers(), Layers()
    overlap = Overlap(TWO, [*student.parameters()])
    for used in (False, True, True, False, False):
        student.used = plain.used = used
        backward(overlap, student)
        overlap.flush()
        overlap.finish([torch.zeros(())])
        plain.zero_grad(set_to_none=True)
        plain(images()).logits.square().sum().backward()
        for one, other in zip(student.parameters(), plain.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None)
            assert one.grad is None or torch.equal(one.grad, 2 * other.grad)


def test_a_message_has_as_many_gradients_as_there_is_room(wire, monkeypatch):
    monkeypatch.setattr(kdbench.parallel.overlap, "SIZES", (4 * 18, 4 * 37))
    student = Layers()
    overlap = Overlap(TWO, [*student.parameters()])
    for _ in range(2):
        backward(overlap, student)
        overlap.flush()
        overlap.finish([torch.zeros(())])
    assert wire.take()[2:] == [18, 36 + 6, 6, 1]


def test_a_lost_rank_is_named_out_of_a_backward_pass(wire, small):
    def lost() -> None:
        raise RuntimeError("[file.cc:1] Connection closed by peer")

    student = Layers()
    overlap = Overlap(TWO, [*student.parameters()])
    backward(overlap, student)
    overlap.flush()
    overlap.finish([torch.zeros(())])
    wire.look = lost
    with pytest.raises(RankError, match=r"rank 0 has lost the others .Connection closed by peer."):
        backward(overlap, student)


def steps(name: str, overlaps: bool, wire: Wire) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
    """The state after three steps of two parts, and each step's messages."""
    student, messages = Layers(), []
    method = build_method(compose_method(name), 0)
    schedule = Schedule(1, 4, 0.1, [], clip_grad=0.5, ema_decay=0.9)
    optimizer = Optimizer(schedule, student, method)
    state = TrainState(student, method, optimizer, torch.Generator(), {})
    accumulation = Accumulation(student, state, 0, TWO, losses_and_sums, overlaps)
    taught = Output(images().flatten(1)[:, :3], {}) if method.num_teachers else None
    sums = {}
    for step in range(3):
        accumulation.start(step, 4)
        for part in Cutting(2, 4, 4, Ranks()).parts(4):
            rows = torch.arange(4)[part.place]
            batch = Batch(images()[rows], rows % 3, rows, torch.tensor(1.0))
            teachers = (Output(taught.logits[rows], {}),) if taught else ()
            accumulation.add(part, batch, teachers)
        sums = accumulation.finish(torch.arange(4), stop=step == 1)
        if overlaps:
            assert accumulation.stops.read() == (2 if step == 1 else 0)
        messages.append(wire.take())
    state_of = {**student.state_dict(), **optimizer.state()[0], **sums}
    average = optimizer.ema.module.state_dict()
    return state_of | {f"ema/{key}": value for key, value in average.items()}, messages


@pytest.mark.parametrize(("name", "gradients"), [("kd", 1), ("dot", 2)])
def test_a_step_is_the_one_that_adds_up_afterwards_in_fewer_messages(name, gradients, wire):
    expected, before = steps(name, False, wire)
    found, messages = steps(name, True, wire)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=key)
    assert [len(sent) for sent in before] == [3, 3, 3]
    assert [len(sent) for sent in messages] == [gradients + 1] * 3


def test_the_average_has_the_statistics_of_the_whole_batch(wire):
    """Of its first step it is a copy."""
    student = Layers()
    method = build_method(compose_method("ce"), 0)
    optimizer = Optimizer(Schedule(1, 4, 0.1, [], ema_decay=0.9), student, method)
    state = TrainState(student, method, optimizer, torch.Generator(), {})
    accumulation = Accumulation(student, state, 0, Ranks(), losses_and_sums)
    accumulation.start(0, 4)
    for part in Cutting(2, 4, 4, Ranks()).parts(4):
        rows = torch.arange(4)[part.place]
        accumulation.add(part, Batch(images()[rows], rows % 3, rows, torch.tensor(1.0)), ())
    accumulation.finish(torch.arange(4), stop=False)
    average = optimizer.ema.module.state_dict()
    for key, value in student.state_dict().items():
        torch.testing.assert_close(average[key], value, msg=key)


# Rank 1 is asked to stop in its third step.
STOPPED = (
    """
import os, signal
from kdbench.training.cohort import Cohort
train_step, count = Cohort.train_step, 0
def asked(cohort, step, stopped):
    global count
    count += 1
    if count == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return train_step(cohort, step, stopped)
Cohort.train_step = asked
"""
    + COHORTS
)


@pytest.mark.long
def test_a_request_to_one_rank_stops_all_after_the_same_step(tmp_path, monkeypatch):
    """And they go on to the bits of one process."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    small = ["schedule.batch_size=8", "schedule.micro_batches=2", "runtime.teacher=live"]
    teacher = train(config(*small, "student=resnet14", "method=ce", "schedule.epochs=1"))
    small += ["teacher=resnet14", f"teacher.resnet14.checkpoint={teacher.resolve()}"]
    small += ["teacher.resnet14.allow_chance=true"]

    def cohort(runs_dir: str) -> list:
        names = ("kd", "reviewkd", "dot")
        return [config(*small, f"method={name}", f"runs_dir={runs_dir}") for name in names]

    write_plan([cohort("two")])
    running = as_ranks(2, "-c", STOPPED, "plan")
    alone = train_together(cohort("alone"))
    for code, said, errors in ended(running):
        assert code == 0, errors
        assert "stopped in epoch 1 after step 4" in said  # it has begun when the third's sums come
    for folder in alone:
        assert differences(folder, Path("two") / folder.name) == ["record: hardware"], folder.name
