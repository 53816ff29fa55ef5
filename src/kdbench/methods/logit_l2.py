"""Logit matching (Ba & Caruana, NeurIPS 2014, arXiv 1312.6184)."""

from torch import Tensor

from kdbench.methods.base import Method, check_weights
from kdbench.types import Batch, Output


class LogitL2(Method):
    """L = ce_weight CE + l2_weight (1/K) sum_k (z^s_k - z^t_k)^2, without a temperature.

    Departures: the paper (section 2.2) regresses on logits alone; the label term beside it and the
    mean over classes are those of the baseline in AberHu/Knowledge-Distillation-Zoo.
    """

    soft_labels = True

    def __init__(self, ce_weight: float = 1.0, l2_weight: float = 0.1) -> None:
        super().__init__()
        check_weights(ce_weight=ce_weight, l2_weight=l2_weight)
        self.ce_weight = ce_weight
        self.l2_weight = l2_weight

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "l2" [B]."""
        (teacher,) = teachers
        distance = (student.logits - teacher.logits).square().mean(dim=1)
        return {"ce": self.label_term(batch, student), "l2": self.l2_weight * distance}
