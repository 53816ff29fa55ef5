"""One training step: a pure function of tensors, then the update. Nothing waits for the device."""

import torch
from torch import Tensor

from kdbench.distillation.losses_of_step import step_losses
from kdbench.methods.base import Method
from kdbench.networks.forward import output_of
from kdbench.training.optimizer import Optimizer
from kdbench.types import Batch, Losses, Network, Output

Sums = dict[str, Tensor]  # name -> [] float64, summed over images


def losses_and_sums(
    student: Network, method: Method, batch: Batch, teachers: tuple[Output, ...]
) -> tuple[Losses, Sums]:
    """The losses to differentiate, and what this batch adds to the epoch's sums."""
    found = step_losses(method, batch, output_of(student, batch.images), teachers)
    count = len(batch.labels)
    sums = {
        "loss": found.total.double() * count,
        "hits": (found.logits.argmax(dim=1) == batch.labels).double().sum(),
    }
    sums |= {f"term/{name}": mean.detach().double() * count for name, mean in found.means.items()}
    sums |= {
        f"method/{name}": value.detach().double().mean() * count
        for name, value in found.curves.items()
    }
    return found.losses, sums


def update(
    student: Network,
    method: Method,
    optimizer: Optimizer,
    batch: Batch,
    teachers: tuple[Output, ...],
) -> Sums:
    """Do the part of a step that follows the draw: on the device alone, from tensors to tensors."""
    losses, sums = losses_and_sums(student, method, batch, teachers)
    optimizer.update(losses)
    return sums


def train_step(
    student: Network,
    method: Method,
    teachers: tuple[Output, ...],
    optimizer: Optimizer,
    batch: Batch,
    generator: torch.Generator,
) -> Sums:
    """Update the student and the method's own parameters once; return the batch's sums."""
    batch = batch._replace(drawn=method.draw(batch, generator))
    return update(student, method, optimizer, batch, teachers)
