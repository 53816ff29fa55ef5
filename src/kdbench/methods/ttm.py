"""Transformed teacher matching (Zheng & Yang, ICLR 2024, arXiv 2402.11148)."""

from torch import Tensor

from kdbench.losses import ttm_loss
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output


class TTM(Method):
    """L = ce_weight CE + ttm_weight KL(q || softmax(z^s)), q proportional to softmax(z^t)^power.

    The power is 1/T of the teacher alone: the student is not softened, and there is no T^2.

    Departures: none; q is computed as softmax(power z^t), which is equal and safe in low precision.
    """

    soft_labels = True

    def __init__(
        self, power: float = 0.1, ce_weight: float = 1.0, ttm_weight: float = 45.0
    ) -> None:
        super().__init__()
        check_positive(power=power)
        check_weights(ce_weight=ce_weight, ttm_weight=ttm_weight)
        self.power = power
        self.ce_weight = ce_weight
        self.ttm_weight = ttm_weight

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "ttm" [B]."""
        (teacher,) = teachers
        divergence = ttm_loss(student.logits, teacher.logits, self.power)
        return {"ce": self.label_term(batch, student), "ttm": self.ttm_weight * divergence}
