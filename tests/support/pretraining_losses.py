"""Losses of recipes with an initial phase: AB, FT and FSP. No method trains with them.

AB and FSP train the student's feature layers on their loss alone for 30 epochs and then drop it:
their main phase is cross-entropy, in which a weight on them changes nothing (RepDistiller). FT
first trains an auto-encoder on the teacher's last map for 30 epochs, to transfer its code. A run
here is one phase with one optimizer and one schedule, in which every recipe gets the same epochs;
so these two-phase recipes are not here, and their losses are for whoever builds or measures one.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from kdbench.losses import attention_map
from kdbench.networks.adapters import match_smaller


def ab_loss(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], margin: float = 1.0
) -> Tensor:
    """Activation boundaries: a squared hinge where the student is not on the teacher's side.

    3 / 1000 sum_l 2^(l-n+1) sum_{C,H,W} [(s + m)^2 where s > -m and t <= 0, (s - m)^2 where
    s <= m and t > 0], l = 0 .. n-1, of connected maps before their activation.
    Shapes: each pair of maps [B, C, H, W] -> [B]. Source: Heo et al., AAAI 2019, arXiv 1811.03233;
    the weights, 3 / 1000 included, are RepDistiller's.
    """
    total = torch.zeros_like(student_maps[0][:, 0, 0, 0])
    pairs = zip(reversed(student_maps), reversed(teacher_maps), strict=True)
    for depth, (student, teacher) in enumerate(pairs):
        wanted = torch.where(teacher > 0, margin, -margin)
        violated = torch.where(teacher > 0, student <= margin, student > -margin)
        squares = (student - wanted).square() * violated
        total = total + squares.sum(dim=(1, 2, 3)) / 2**depth
    return 3 / 1000 * total


def ft_loss(student_factor: Tensor, teacher_factor: Tensor, power: float = 2.0) -> Tensor:
    """Factor transfer: mean over the positions of |A(translator's map) - A(paraphraser's code)|.

    A is AT's map, mean_C |F|^power, L2-normalised; the larger map is average-pooled first.
    Shapes: [B, C, H, W] and [B, C', H', W'] -> [B]. Source: Kim et al., NeurIPS 2018, arXiv
    1802.04977, in RepDistiller's form; the paper normalises the whole map, without a channel mean.
    """
    student_factor, teacher_factor = match_smaller(student_factor, teacher_factor)
    difference = attention_map(student_factor, power) - attention_map(teacher_factor, power)
    return difference.abs().mean(dim=1)


def fsp_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Flow of the solution procedure: mean squared difference of FSP matrices, summed over pairs.

    Shapes: maps [B, C, H, W] of two taps or more, student and teacher with equal channels -> [B].
    Source: Yim et al., CVPR 2017.
    """
    pairs = zip(_flows(student_maps), _flows(teacher_maps), strict=True)
    total = torch.zeros_like(student_maps[0][:, 0, 0, 0])
    for student, teacher in pairs:
        total = total + (student - teacher).square().mean(dim=(1, 2))
    return total


def _flows(maps: Sequence[Tensor]) -> list[Tensor]:
    """FSP matrices [B, C', C] of consecutive maps: the mean over positions of their products."""
    flows = []
    for before, after in pairwise(maps):
        first, second = (m.flatten(2) for m in match_smaller(before, after))
        flows.append(torch.bmm(second, first.mT) / first.shape[2])
    return flows
