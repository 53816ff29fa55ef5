"""The losses of one training step: a pure function of tensors."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kdbench.methods.base import Method, Terms
from kdbench.types import Batch, Losses, Output, Stream


class StepLosses(NamedTuple):
    """The losses to differentiate, and what they are made of."""

    losses: Losses
    means: Terms  # of each loss term []
    curves: Terms  # what the method observes, [B] or []
    logits: Tensor  # of the student on the first view [B, K], detached

    @property
    def total(self) -> Tensor:
        """The sum of the terms' means [], detached; what curves call the loss."""
        return torch.stack(list(self.means.values())).detach().sum()


def step_losses(
    method: Method, batch: Batch, student: Output, teachers: tuple[Output, ...]
) -> StepLosses:
    """Each loss is the sum of the means of the method's terms: of the label term, of all others."""
    terms, curves = method.terms_and_curves(batch, student, teachers)
    means = {name: term.mean() for name, term in terms.items()}
    distillation = [mean for name, mean in means.items() if name != "ce"]
    losses = Losses(
        means.get("ce"),
        torch.stack(distillation).sum() if distillation else None,
        stream_losses(method.streams, means),
    )
    count = len(batch.labels)
    logits = student.logits.detach().reshape(-1, count, student.logits.shape[-1])[0]
    return StepLosses(losses, means, curves, logits)


def stream_losses(
    streams: Sequence[Stream], means: Mapping[str, Tensor]
) -> tuple[Tensor | None, ...]:
    """The sum of each stream's terms; None where the recipe has none of them."""
    named = {name for stream in streams for name in stream.terms}
    losses = []
    for stream in streams:
        terms = stream.terms or [name for name in means if name not in named]
        found = [means[name] for name in terms if name in means]
        losses.append(torch.stack(found).sum() if found else None)
    return tuple(losses)
