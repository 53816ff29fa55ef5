"""ABKD in TTM's form (ICML 2025, arXiv 2505.04560)."""

import torch
from torch import Tensor

from kdbench.losses import ab_divergence
from kdbench.methods.base import Method, check_finite, check_positive, check_weights
from kdbench.types import Batch, Output


class ABTTM(Method):
    """L = ce_weight CE + ab_weight D(q || softmax(z^s)), q proportional to softmax(z^t)^power.

    As TTM the student is not softened and there is no T^2; D is the alpha-beta divergence. (1, 0)
    is TTM.

    Departures: as of `abkd`; q is computed as softmax(power z^t).
    """

    soft_labels = True

    def __init__(
        self,
        power: float = 0.1,
        ce_weight: float = 1.0,
        ab_weight: float = 76.0,
        alpha: float = 0.8,
        beta: float = 0.3,
    ) -> None:
        super().__init__()
        check_positive(power=power)
        check_weights(ce_weight=ce_weight, ab_weight=ab_weight)
        check_finite(alpha=alpha, beta=beta)
        self.power = power
        self.ce_weight = ce_weight
        self.ab_weight = ab_weight
        self.alpha, self.beta = alpha, beta

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" and "ab", each [B]."""
        (teacher,) = teachers
        target = torch.log_softmax(self.power * teacher.logits, dim=1)
        own = torch.log_softmax(student.logits, dim=1)
        divergence = ab_divergence(target, own, self.alpha, self.beta)
        return {"ce": self.label_term(batch, student), "ab": self.ab_weight * divergence}
