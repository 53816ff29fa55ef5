"""One training step: a pure function of tensors, then the update. Nothing waits for the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kdbench.methods.base import Method
from kdbench.networks.forward import output_of
from kdbench.training.optimizer import Optimizer
from kdbench.types import Batch, Losses, Network, Output, Stream

Sums = dict[str, Tensor]  # name -> [] float64, summed over images


def losses_and_sums(
    student: Network, method: Method, batch: Batch, teachers: tuple[Output, ...]
) -> tuple[Losses, Sums]:
    """Return the losses to differentiate, and this batch's contribution to the epoch's sums.

    A loss is a sum of means of the method's terms: of the label term, or of all others.
    """
    output = output_of(student, batch.images)
    terms, seen = method.terms_and_curves(batch, output, teachers)
    means = {name: term.mean() for name, term in terms.items()}
    distillation = [mean for name, mean in means.items() if name != "ce"]
    losses = Losses(
        means.get("ce"),
        torch.stack(distillation).sum() if distillation else None,
        stream_losses(method.streams, means),
    )
    count = len(batch.labels)
    logits = output.logits.detach().reshape(-1, count, output.logits.shape[-1])[0]  # first view
    sums = {
        "loss": torch.stack(list(means.values())).detach().sum().double() * count,
        "hits": (logits.argmax(dim=1) == batch.labels).double().sum(),  # a name in checkpoints
    }
    sums |= {f"term/{name}": mean.detach().double() * count for name, mean in means.items()}
    sums |= {
        f"method/{name}": value.detach().double().mean() * count for name, value in seen.items()
    }
    return losses, sums


def stream_losses(streams: Sequence[Stream], means: Sums) -> tuple[Tensor | None, ...]:
    """Return the sum of each stream's terms; None where the recipe has none of them."""
    named = {name for stream in streams for name in stream.terms}
    losses = []
    for stream in streams:
        terms = stream.terms or [name for name in means if name not in named]
        found = [means[name] for name in terms if name in means]
        losses.append(torch.stack(found).sum() if found else None)
    return tuple(losses)


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
