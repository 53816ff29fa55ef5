"""The tuples that pass between data, networks, methods and the step.

Letters in shape comments, everywhere: B batch, K classes, C H W feature map, D vector,
N training samples, M negatives, T teachers.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Everything that changes from step to step; every field is a tensor."""

    images: Tensor  # [B, 3, H, W] normalised
    labels: Tensor  # [B] int64
    index: Tensor  # [B] int64, row in the training set
    epoch: Tensor  # [] float32, counts from 1
    drawn: Tensor | None = None  # what the method drew for this step


class Output(NamedTuple):
    """What every network returns."""

    logits: Tensor  # [B, K]
    taps: dict[str, Tensor]  # canonical name -> [B, C, H, W] or [B, D]


class NetworkProbe(NamedTuple):
    """What a method may know of one network before training."""

    taps: dict[str, torch.Size]  # canonical name -> shape without the batch


class Probe(NamedTuple):
    """What `Method.setup` gets to build adapters, banks and buffers from."""

    student: NetworkProbe
    teachers: tuple[NetworkProbe, ...]
    num_classes: int
    num_samples: int  # N, size of the training set
