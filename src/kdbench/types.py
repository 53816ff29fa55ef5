"""The tuples that pass between data, networks, methods and the step.

Letters in shape comments, everywhere: B batch, V views, K classes, C H W feature map, D vector,
N training samples, M negatives, T teachers.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Batch(NamedTuple):
    """The inputs of one step; every field is a tensor."""

    images: Tensor  # [B, 3, H, W] normalised; [V, B, 3, H, W] where the method asks for V views
    labels: Tensor  # [B] int64; of the larger part of a mixed image
    index: Tensor  # type: ignore[assignment]  # hides tuple.index; [B] int64, training row
    epoch: Tensor  # [] float32, counts from 1
    drawn: Tensor | None = None  # the method's random numbers for this step
    targets: Tensor | None = None  # [B, K] the labels as distributions, where they are soft


class Output(NamedTuple):
    """The output of every network; a method of V views gets each tensor with V in front."""

    logits: Tensor  # [B, K]
    taps: dict[str, Tensor]  # canonical name -> [B, C, H, W] or [B, D]


Network = Callable[[Tensor], Output]  # an nn.Module, a compiled one, or a frozen teacher


class Stream(NamedTuple):
    """Loss terms whose gradient has a momentum buffer of its own."""

    name: str
    terms: tuple[str, ...]  # () : every term that no other stream names
    gap: float  # added to the momentum of parameters that more than one stream reaches


class Affine(NamedTuple):
    """The weight and bias of a layer, detached copies on the CPU."""

    weight: Tensor  # [K, D] of a classifier, [C] of a batch norm
    bias: Tensor  # [K] or [C]


class NetworkProbe(NamedTuple):
    """The facts about one network that a method may use before training."""

    taps: dict[str, torch.Size]  # canonical name -> shape without the batch
    classifier: Affine | None = None  # logits = pooled @ weight.T + bias, if so
    stage_norms: tuple[Affine, ...] = ()  # the BN before each stage's last ReLU, where it has one
    image: torch.Size = torch.Size()  # [C, H, W] of the data set
    class_means: Callable[[str], Tensor] | None = None  # tap [B, D] -> [K, D], means per class
    #                                                     over the training images, unaugmented
    network: nn.Module | None = None  # the network itself, to run it from a stage on
    class_features: Callable[[str], Tensor] | None = None  # tap [B, D] -> [K, N, D], of the first
    #                                                        N of each class, N the smallest's size


class Probe(NamedTuple):
    """The argument of `Method.setup`, from which methods build adapters, banks and buffers."""

    student: NetworkProbe
    teachers: tuple[NetworkProbe, ...]
    num_classes: int
    labels: Tensor  # [N] int64 on the CPU, of the training set

    @property
    def num_samples(self) -> int:
        """N, the size of the training set."""
        return len(self.labels)


class Losses(NamedTuple):
    """A step's loss in its two parts, each [] or None where a recipe has no such term.

    Where the method has gradient streams, the same loss is also given by stream.
    """

    label: Tensor | None
    distillation: Tensor | None
    streams: tuple[Tensor | None, ...] = ()

    def total(self) -> Tensor:
        """Return the label loss plus the distillation loss."""
        parts = [part for part in (self.label, self.distillation) if part is not None]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def times(self, share: float) -> "Losses":
        """Return the losses with all parts times a number."""
        label, distillation, *streams = (
            None if part is None else part * share
            for part in (self.label, self.distillation, *self.streams)
        )
        return Losses(label, distillation, tuple(streams))
