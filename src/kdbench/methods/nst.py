"""Neuron selectivity transfer (Huang & Wang 2017, arXiv 1707.01219)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.losses import total
from kdbench.methods.base import Method, check_weights
from kdbench.networks.adapters import match_smaller, paired_maps
from kdbench.types import Batch, Output, Probe


def nst_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Squared MMD between the channels of two maps under k(a, b) = (a^T b)^2, of each sample.

    Shapes: [B, C, H, W] and [B, C', H', W'] -> [B]; the larger map is average-pooled first, and
    a channel is its L2-normalised vector of positions. Source: Huang & Wang 2017, with their
    polynomial kernel of degree 2.

    The mean of k over two sets of channels is computed from [B, C, C'], or, where there are fewer
    positions than channels, from the sets' mean outer products [B, H W, H W]: with G = mean a a^T
    the squared MMD is ||G^t - G^s||^2. Never from the product [B, C, C', H W].
    """
    student_map, teacher_map = match_smaller(student_map, teacher_map)
    student, teacher = (F.normalize(m.flatten(2), dim=2) for m in (student_map, teacher_map))
    if student.shape[2] < max(student.shape[1], teacher.shape[1]):
        gap = _mean_outer_product(teacher) - _mean_outer_product(student)
        return gap.square().sum(dim=(1, 2))
    return (
        _mean_kernel(teacher, teacher)
        + _mean_kernel(student, student)
        - 2 * _mean_kernel(student, teacher)
    )


def _mean_kernel(first: Tensor, second: Tensor) -> Tensor:
    """Mean of (a^T b)^2 over the rows a, b of [B, C, N] and [B, C', N] -> [B]."""
    return torch.bmm(first, second.mT).square().mean(dim=(1, 2))


def _mean_outer_product(rows: Tensor) -> Tensor:
    """Mean of a a^T over the rows a of [B, C, N] -> [B, N, N]."""
    return torch.bmm(rows.mT, rows) / rows.shape[1]


class NST(Method):
    """L = ce_weight CE + nst_weight sum_l MMD^2(channels of F^s_l, channels of F^t_l).

    l over the shared stages; the kernel is (a^T b)^2.

    Departures: none from the released codes' values; their product of [B, C, C', H, W] (1 GB a
    kernel for resnet32x4 at B=64, 17 GB for ResNet50) is never built.
    """

    soft_labels = True

    def __init__(self, ce_weight: float = 1.0, nst_weight: float = 50.0) -> None:
        super().__init__()
        check_weights(ce_weight=ce_weight, nst_weight=nst_weight)
        self.ce_weight = ce_weight
        self.nst_weight = nst_weight

    def setup(self, probe: Probe) -> None:
        """Find the stages that both networks have."""
        self.pairs = paired_maps(probe)
        self.taps = tuple(theirs for _, theirs in self.pairs)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "nst" [B]."""
        (teacher,) = teachers
        distance = total(
            nst_loss(student.taps[own], teacher.taps[theirs]) for own, theirs in self.pairs
        )
        return {"ce": self.label_term(batch, student), "nst": self.nst_weight * distance}
