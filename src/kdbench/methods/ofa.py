"""OFA-KD, one for all, its logit part (NeurIPS 2023, arXiv 2310.19444)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output


def ofa_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    exponent: float,
) -> Tensor:
    """-sum_k [(p^t_k + 1[k = y])^exponent - 1[k = y]] log p^s_k of each sample, no T^2.

    Shapes: logits [B, K], labels [B] -> [B]. With exponent 1 it is H(p^t, p^s), that is KL and a
    constant; above 1 the label's share grows with what the teacher thinks of it.
    """
    teacher = torch.softmax(teacher_logits / temperature, dim=1)
    label = F.one_hot(labels, teacher.shape[1]).to(teacher.dtype)
    own = torch.log_softmax(student_logits / temperature, dim=1)
    return -(((teacher + label) ** exponent - label) * own).sum(dim=1)


class OFA(Method):
    """L = ce_weight CE + ofa_weight OFA on the final logits, between any two architectures.

    Departures: the released method has the same loss on exit heads at stages of the student too
    (down-sampling separable convolutions, pooling, a classifier); they are left out. So is its
    protocol: images of 224 pixels, 300 epochs, a cosine schedule, label smoothing in the CE, AdamW
    with mixup and CutMix for transformers.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        ce_weight: float = 1.0,
        ofa_weight: float = 1.0,
        exponent: float = 1.0,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, exponent=exponent)
        check_weights(ce_weight=ce_weight, ofa_weight=ofa_weight)
        self.temperature = temperature
        self.ce_weight, self.ofa_weight = ce_weight, ofa_weight
        self.exponent = exponent

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" and "ofa", each [B]."""
        (teacher,) = teachers
        settings = batch.labels, self.temperature, self.exponent
        loss = ofa_loss(student.logits, teacher.logits, *settings)
        return {"ce": self.label_term(batch, student), "ofa": self.ofa_weight * loss}
