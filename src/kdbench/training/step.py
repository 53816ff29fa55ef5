"""One training step: a task's losses, then the update. Nothing waits for the device."""

from collections.abc import Callable
from typing import Any

import torch

from kdbench.methods.base import Method
from kdbench.tasks.task import Sums
from kdbench.training.optimizer import Optimizer
from kdbench.types import Losses, Network

# The network, the method, a batch and the teachers' outputs -> the losses and the batch's sums.
LossesOf = Callable[[Network, Method, Any, Any], tuple[Losses, Sums]]


def update(
    student: Network,
    method: Method,
    optimizer: Optimizer,
    batch: Any,
    teachers: Any,
    losses_of: LossesOf,
) -> Sums:
    """Do the part of a step that follows the draw: on the device alone, from tensors to tensors."""
    losses, sums = losses_of(student, method, batch, teachers)
    optimizer.update(losses)
    return sums


def train_step(
    student: Network,
    method: Method,
    teachers: Any,
    optimizer: Optimizer,
    batch: Any,
    generator: torch.Generator,
    losses_of: LossesOf,
) -> Sums:
    """Update the student and the method's own parameters once; return the batch's sums."""
    batch = batch._replace(drawn=method.draw(batch, generator))
    return update(student, method, optimizer, batch, teachers, losses_of)
