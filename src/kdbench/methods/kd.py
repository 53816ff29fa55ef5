"""Knowledge distillation (Hinton, Vinyals & Dean 2015, arXiv 1503.02531)."""

from torch import Tensor

from kdbench.losses import kd_loss
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output


class KD(Method):
    """L = ce_weight * CE + kd_weight * T^2 KL(softmax(z^t / T) || softmax(z^s / T)).

    Two weightings are published and differ by a point on resnet32x4 -> resnet8x4: 0.1 / 0.9
    (RepDistiller, mdistiller: 73.33) and 1 / 1 (SemCKD, SimKD: 74.42). A table must say which.
    """

    soft_labels = True
    tasks = ("classification", "detection")

    def __init__(
        self, temperature: float = 4.0, ce_weight: float = 0.1, kd_weight: float = 0.9
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_weights(ce_weight=ce_weight, kd_weight=kd_weight)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "kd" [B]."""
        (teacher,) = teachers
        return {
            "ce": self.label_term(batch, student),
            "kd": self.kd_weight * kd_loss(student.logits, teacher.logits, self.temperature),
        }
