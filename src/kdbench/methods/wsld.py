"""Weighted soft labels (Zhou et al., ICLR 2021, arXiv 2102.00650)."""

import torch
from torch import Tensor

from kdbench.losses import cross_entropy
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output

EPSILON = 1e-7  # the released code's, part of the formula: a teacher without any loss has weight 1


def soft_label_weight(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """w = 1 - exp(-CE(z^s) / (CE(z^t) + 1e-7)), without a gradient.

    Shapes: logits [B, K], labels [B] -> [B] in [0, 1]. Small where the student already fits the
    label better than the teacher does.
    """
    student_loss = cross_entropy(student_logits.detach(), labels)
    return -torch.expm1(-student_loss / (cross_entropy(teacher_logits, labels) + EPSILON))


class WSLD(Method):
    """L = ce_weight CE + soft_weight T^2 w H(softmax(z^t / T), softmax(z^s / T)), per sample.

    w is `soft_label_weight` (from logits at T = 1), H the cross-entropy. As H keeps the entropy of
    the soft label, the term is not 0 at student = teacher; its gradient is that of w KL.

    Departures: none in the value. The released code keeps the graph of the teacher's forward pass,
    and clamps w's ratio to 0 or more, which it always is.
    """

    def __init__(
        self, temperature: float = 4.0, ce_weight: float = 1.0, soft_weight: float = 2.25
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_weights(ce_weight=ce_weight, soft_weight=soft_weight)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.soft_weight = soft_weight

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "soft" [B]."""
        (teacher,) = teachers
        target = torch.softmax(teacher.logits / self.temperature, dim=1)
        log_probs = torch.log_softmax(student.logits / self.temperature, dim=1)
        weight = soft_label_weight(student.logits, teacher.logits, batch.labels)
        soft = -(self.temperature**2) * weight * (target * log_probs).sum(dim=1)
        return {"ce": self.label_term(batch, student), "soft": self.soft_weight * soft}
