"""A run's state as a checkpoint and back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdbench.errors import KdbenchError
from kdbench.methods.base import Method
from kdbench.training.optimizer import Optimizer
from kdbench.training.schedule import Schedule
from kdbench.training.snapshot import TrainState, restore, take
from kdbench.types import Losses

FOLDER = Path("runs/digits-s0")
Plain = dict[str, Any]


def state_of(steps: int) -> TrainState:
    """A small run after so many steps."""
    torch.manual_seed(steps)
    student, method = nn.Linear(2, 2), Method()
    optimizer = Optimizer(Schedule(2, 1, 0.1, []), student, method)
    for _ in range(steps):
        optimizer.update(Losses(student(torch.ones(1, 2)).sum(), None))
    random = {"cpu": torch.get_rng_state()}
    history = [{"epoch": 1, "test/top1": 50.0}] if steps else []
    generator = torch.Generator().manual_seed(steps)
    return TrainState(student, method, optimizer, generator, random, steps, history=history)


def test_what_is_taken_is_restored():
    run, other = state_of(2), state_of(0)
    restore(other, take(run), FOLDER)
    assert (other.step, other.history) == (2, run.history)
    assert torch.equal(other.student.weight, run.student.weight)
    assert torch.equal(other.generator.get_state(), run.generator.get_state())


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda plain: plain.update(warp=1, plan=2), "KeyError: 'plan, warp'"),
        (lambda plain: plain.pop("seconds"), "KeyError: 'seconds'"),
        (
            lambda plain: plain["history"].append(3),
            "TypeError: its history has other rows than epochs",
        ),
    ],
)
def test_a_checkpoint_of_another_version_is_one_line(act: Callable[[Plain], object], reason: str):
    checkpoint = take(state_of(2))
    act(checkpoint.state)
    with pytest.raises(KdbenchError) as caught:
        restore(state_of(0), checkpoint, FOLDER)
    assert str(caught.value) == (
        f"the newest checkpoint in {FOLDER} holds another state than this run has ({reason}): go "
        "on with the version that wrote it, or remove the folder to start anew"
    )
