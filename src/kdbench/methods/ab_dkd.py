"""ABKD in DKD's form (ICML 2025, arXiv 2505.04560)."""

import torch
from torch import Tensor

from kdbench.losses import ab_divergence, kl_divergence, split_log_probs
from kdbench.methods.base import Method, check_finite, check_positive, check_weights
from kdbench.types import Batch, Output


class ABDKD(Method):
    """DKD whose non-target term is the alpha-beta divergence, with DKD's weights and warm-up.

    L = ce_weight CE + min(epoch / warmup_epochs, 1) T^2 (tckd_weight TCKD + nckd_weight D), where D
    lies between the two networks' probabilities among the other classes. (1, 0) is DKD.

    Departures: the released form knows (1, 0) as its only special case and divides by 0 at others;
    here each has its analytic form.
    """

    reads_epoch = True

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        tckd_weight: float = 1.0,
        nckd_weight: float = 8.0,
        alpha: float = 0.8,
        beta: float = 0.3,
        warmup_epochs: int = 20,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, warmup_epochs=warmup_epochs)
        check_weights(ce_weight=ce_weight, tckd_weight=tckd_weight, nckd_weight=nckd_weight)
        check_finite(alpha=alpha, beta=beta)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.tckd_weight = tckd_weight
        self.nckd_weight = nckd_weight
        self.alpha, self.beta = alpha, beta
        self.warmup_epochs = warmup_epochs

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "tckd" and "nckd", each [B]."""
        (teacher,) = teachers
        factor = torch.clamp(batch.epoch / self.warmup_epochs, max=1.0) * self.temperature**2
        own, theirs = (
            split_log_probs(logits, batch.labels, self.temperature)
            for logits in (student.logits, teacher.logits)
        )
        divergence = ab_divergence(theirs[1], own[1], self.alpha, self.beta)
        return {
            "ce": self.label_term(batch, student),
            "tckd": factor * self.tckd_weight * kl_divergence(theirs[0], own[0]),
            "nckd": factor * self.nckd_weight * divergence,
        }
