"""PLD, Plackett-Luce distillation (NeurIPS 2025, arXiv 2506.12542), reconstructed."""

import torch
from torch import Tensor

from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output


def teacher_order(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """The classes of each sample, [B, K]: the label first, the others by falling teacher logit."""
    top = torch.finfo(teacher_logits.dtype).max
    first = torch.full_like(labels, 1).unsqueeze(1) * top
    lifted = teacher_logits.scatter(1, labels.unsqueeze(1), first.to(teacher_logits.dtype))
    return lifted.argsort(dim=1, descending=True)


def pld_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """sum_k p^t(o_k) [log sum_{j>=k} exp z^s(o_j) - z^s(o_k)] of each sample, o the order.

    Shapes: logits [B, K], labels [B] -> [B]. Each bracket is the surprise at finding o_k in front
    of all that follow it; p^t = softmax(z^t / T).
    """
    order = teacher_order(teacher_logits, labels)
    student = student_logits.gather(1, order)
    weights = torch.softmax(teacher_logits / temperature, dim=1).gather(1, order)
    following = student.flip(1).logcumsumexp(dim=1).flip(1)
    return (weights * (following - student)).sum(dim=1)


class PLD(Method):
    """L = ce_weight CE + pld_weight PLD, which replaces the cross-entropy: ce_weight is 0.

    The first place of PLD is the label's, and its bracket there is the cross-entropy, weighted by
    what the teacher thinks of the label.

    Departures: reconstructed from the abstract, which names the order and the weights; no code and
    no constants were at hand, so the teacher's temperature of 1 is ours.
    """

    def __init__(
        self, temperature: float = 1.0, ce_weight: float = 0.0, pld_weight: float = 1.0
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_weights(ce_weight=ce_weight, pld_weight=pld_weight)
        self.temperature = temperature
        self.ce_weight, self.pld_weight = ce_weight, pld_weight

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" and "pld", each [B]."""
        (teacher,) = teachers
        loss = pld_loss(student.logits, teacher.logits, batch.labels, self.temperature)
        return {"ce": self.label_term(batch, student), "pld": self.pld_weight * loss}
