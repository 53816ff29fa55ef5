"""ABKD, the alpha-beta divergence (ICML 2025, arXiv 2505.04560)."""

import torch
from torch import Tensor

from kdbench.losses import ab_divergence
from kdbench.methods.base import Method, check_finite, check_positive, check_weights
from kdbench.types import Batch, Output


class ABKD(Method):
    """L = ce_weight CE + ab_weight D(softmax(z^t / T) || softmax(z^s / T)), per sample.

    D is the alpha-beta divergence (`losses.ab_divergence`): alpha weighs where the teacher is
    confident, beta where the student is; (1, 0) is KL, (0, 1) its reverse. The released code has
    no factor T^2, but for its form on standardised logits, which `squared_temperature` is.

    Departures: the released code divides by alpha or beta once instead of twice where the other
    one, or alpha + beta, is 0; here each case has its analytic form.
    """

    soft_labels = True

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        ab_weight: float = 32.0,
        alpha: float = 0.8,
        beta: float = 0.3,
        squared_temperature: bool = False,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_weights(ce_weight=ce_weight, ab_weight=ab_weight)
        check_finite(alpha=alpha, beta=beta)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.ab_weight = ab_weight
        self.alpha, self.beta = alpha, beta
        self.factor = temperature**2 if squared_temperature else 1.0

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" and "ab", each [B]."""
        (teacher,) = teachers
        own, theirs = (
            torch.log_softmax(logits / self.temperature, dim=1)
            for logits in (student.logits, teacher.logits)
        )
        divergence = self.factor * ab_divergence(theirs, own, self.alpha, self.beta)
        return {"ce": self.label_term(batch, student), "ab": self.ab_weight * divergence}
