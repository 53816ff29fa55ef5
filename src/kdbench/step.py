"""One training step: a pure function of tensors, then the update. Nothing waits for the device."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdbench.methods.base import Method
from kdbench.optim import Optimizer
from kdbench.types import Batch, Output

Sums = dict[str, Tensor]  # name -> [] float64, summed over images


def teacher_outputs(teachers: Sequence[nn.Module], batch: Batch) -> tuple[Output, ...]:
    """Every frozen teacher's output on the same views that the student sees."""
    with torch.no_grad():
        return tuple(teacher(batch.images) for teacher in teachers)


def loss_and_sums(
    student: nn.Module, method: Method, batch: Batch, teachers: tuple[Output, ...]
) -> tuple[Tensor, Sums]:
    """The loss to differentiate, and what this batch adds to the epoch's sums.

    The loss is the sum of the means of the method's terms.
    """
    output = student(batch.images)
    terms = method(batch, output, teachers)
    means = {name: term.mean() for name, term in terms.items()}
    loss = torch.stack(list(means.values())).sum()
    count = len(batch.labels)
    sums = {
        "loss": loss.detach().double() * count,
        "hits": (output.logits.detach().argmax(dim=1) == batch.labels).double().sum(),
    }
    sums |= {f"term/{name}": mean.detach().double() * count for name, mean in means.items()}
    return loss, sums


def train_step(
    student: nn.Module,
    method: Method,
    teachers: Sequence[nn.Module],
    optimizer: Optimizer,
    batch: Batch,
    generator: torch.Generator,
) -> Sums:
    """One update of the student and of the method's own parameters; returns the batch's sums."""
    batch = batch._replace(drawn=method.draw(batch, generator))
    loss, sums = loss_and_sums(student, method, batch, teacher_outputs(teachers, batch))
    optimizer.sgd.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.sgd.step()
    return sums
