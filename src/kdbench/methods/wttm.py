"""Weighted transformed teacher matching (Zheng & Yang, ICLR 2024, arXiv 2402.11148)."""

import torch
from torch import Tensor

from kdbench.losses import ttm_loss
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output


def power_sum(logits: Tensor, power: float) -> Tensor:
    """U = sum_k softmax(z)_k^power of each sample.

    Shapes: logits [B, K] -> [B], from 1 (a certain teacher) to K^(1 - power) (a uniform one) for a
    power below 1. Source: section 4.
    """
    return torch.logsumexp(power * torch.log_softmax(logits, dim=1), dim=1).exp()


class WTTM(Method):
    """L = ce_weight CE + wttm_weight U KL(q || softmax(z^s)), per sample.

    q is proportional to softmax(z^t)^power as in TTM; U = sum_k (softmax(z^t)_k)^power is larger
    where the teacher is smoother.

    Departures: none; powers are computed from log-probabilities, which is equal and safe in low
    precision.
    """

    soft_labels = True

    def __init__(
        self, power: float = 0.2, ce_weight: float = 1.0, wttm_weight: float = 4.0
    ) -> None:
        super().__init__()
        check_positive(power=power)
        check_weights(ce_weight=ce_weight, wttm_weight=wttm_weight)
        self.power = power
        self.ce_weight = ce_weight
        self.wttm_weight = wttm_weight

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "wttm" [B]."""
        (teacher,) = teachers
        divergence = ttm_loss(student.logits, teacher.logits, self.power)
        weight = power_sum(teacher.logits, self.power)
        return {
            "ce": self.label_term(batch, student),
            "wttm": self.wttm_weight * weight * divergence,
        }
