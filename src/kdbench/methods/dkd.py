"""Decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv 2203.08679)."""

import torch
from torch import Tensor

from kdbench.losses import kl_divergence
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output


def split_log_probs(
    logits: Tensor, labels: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (target, not target) and of the other classes among themselves.

    Shapes: logits [B, K], labels [B] -> [B, 2] and [B, K-1]. The other classes are gathered, so
    nothing is masked with a large number and log(1 - p_y) is a logsumexp that cannot underflow.
    """
    scaled = logits / temperature
    target = labels.unsqueeze(1)  # [B, 1]
    position = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = scaled.gather(1, position + (position >= target).long())  # [B, K-1]
    binary = torch.cat([scaled.gather(1, target), others.logsumexp(1, keepdim=True)], dim=1)
    return torch.log_softmax(binary, dim=1), torch.log_softmax(others, dim=1)


def dkd_losses(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """T^2 TCKD and T^2 NCKD of each sample, unweighted (equations 4 to 7 of the paper).

    Shapes: logits [B, K], labels [B] -> two tensors [B], in nats. With p the teacher's target
    probability at temperature T, KD's own loss is TCKD + (1 - p) NCKD.
    """
    student_binary, student_others = split_log_probs(student_logits, labels, temperature)
    teacher_binary, teacher_others = split_log_probs(teacher_logits, labels, temperature)
    target_class = temperature**2 * kl_divergence(teacher_binary, student_binary)
    other_classes = temperature**2 * kl_divergence(teacher_others, student_others)
    return target_class, other_classes


class DKD(Method):
    """L = ce_weight CE + min(epoch / warmup_epochs, 1) (tckd_weight TCKD + nckd_weight NCKD).

    The paper's alpha is `tckd_weight`, its beta `nckd_weight`; epochs count from 1 as in the
    released code. Departure from that code: the split is computed with logsumexp over the other
    classes instead of log(softmax) and a mask of -1000; equal to 1e-9 in float64.
    """

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        tckd_weight: float = 1.0,
        nckd_weight: float = 8.0,
        warmup_epochs: int = 20,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, warmup_epochs=warmup_epochs)
        check_weights(ce_weight=ce_weight, tckd_weight=tckd_weight, nckd_weight=nckd_weight)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.tckd_weight = tckd_weight
        self.nckd_weight = nckd_weight
        self.warmup_epochs = warmup_epochs

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "tckd" and "nckd", each [B]."""
        (teacher,) = teachers
        warmup = torch.clamp(batch.epoch / self.warmup_epochs, max=1.0)
        tckd, nckd = dkd_losses(student.logits, teacher.logits, batch.labels, self.temperature)
        return {
            "ce": self.label_term(batch, student),
            "tckd": warmup * self.tckd_weight * tckd,
            "nckd": warmup * self.nckd_weight * nckd,
        }
