"""Normalised KD (Yang et al., ICCV 2023, arXiv 2303.13005)."""

from torch import Tensor

from kdbench.losses import cross_entropy, split_log_probs
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output


def nkd_losses(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """-p^t_y log p^s_y at T = 1, and -T^2 sum_{k != y} t_k log s_k over the other classes.

    Shapes: logits [B, K], labels [B] -> two tensors [B], in nats. t and s are softmaxes of the K-1
    other logits over T. Both are cross-entropies: neither is 0 at student = teacher.
    """
    teacher_target = (-cross_entropy(teacher_logits, labels)).exp()
    _, student_others = split_log_probs(student_logits, labels, temperature)
    _, teacher_others = split_log_probs(teacher_logits, labels, temperature)
    others = -(temperature**2) * (teacher_others.exp() * student_others).sum(dim=1)
    return teacher_target * cross_entropy(student_logits, labels), others


class NKD(Method):
    """L = ce_weight CE - p^t_y log p^s_y - g T^2 sum_{k != y} t_k log s_k; g = nontarget_weight.

    t and s are the two networks' softmaxes at temperature T over the classes without the label; the
    target's own term is at T = 1 and has no weight.

    Departures: none known. One revision of the released code (yzd-v/cls_KD 1c2c0ff) leaves the
    label among the other classes; ours takes it out, as the paper and the other revisions do.
    """

    def __init__(
        self, temperature: float = 3.0, ce_weight: float = 1.0, nontarget_weight: float = 3.5
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_weights(ce_weight=ce_weight, nontarget_weight=nontarget_weight)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.nontarget_weight = nontarget_weight

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "target" and "nontarget", each [B]."""
        (teacher,) = teachers
        target, others = nkd_losses(student.logits, teacher.logits, batch.labels, self.temperature)
        return {
            "ce": self.label_term(batch, student),
            "target": target,
            "nontarget": self.nontarget_weight * others,
        }
