"""CRLD, cross-view consistency of logits (ACM MM 2024, arXiv 2412.16493)."""

import torch
from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.losses import kd_loss
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output

WEAK, STRONG = 0, 1  # the views


class CRLD(Method):
    """L = ce_weight sum_v CE_v + within_weight m_w sum_v KL(t_v -> s_v) + cross_weight m_s cross.

    Two views of each image, weak and strong; KL with T^2. Within the views each student row learns
    from the teacher's on the same view where the teacher is sure of the weak one, m_w = [max
    p^t(weak) >= weak_threshold]; across them from the other view's, where it is sure of the strong
    one, m_s = [max p^t(strong) >= strong_threshold]. Both masks come from T = 1, and means are
    over all samples. Terms have a row per view, times V because the step takes means.

    Departures: the released strong view is RandAugment(2, 10) and Cutout; this benchmark's is
    RandAugment alone (data/randaugment).
    """

    views = 2

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        within_weight: float = 2.0,
        cross_weight: float = 0.5,
        weak_threshold: float = 0.9,
        strong_threshold: float = 0.2,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_weights(ce_weight=ce_weight, within_weight=within_weight, cross_weight=cross_weight)
        for name, value in (("weak", weak_threshold), ("strong", strong_threshold)):
            if not 0 <= value <= 1:
                raise ConfigError(f"method.{name}_threshold must be from 0 to 1, not {value}")
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.within_weight, self.cross_weight = within_weight, cross_weight
        self.weak_threshold, self.strong_threshold = weak_threshold, strong_threshold

    def rows(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """The masked KL of the student's views [V, B, K] from the teacher's rows: [V, B]."""
        pairs = zip(student.unbind(), teacher.unbind(), strict=True)
        losses = [kd_loss(own, theirs, self.temperature) for own, theirs in pairs]
        return len(losses) * mask * torch.stack(losses)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B], "within" [V, B] and "cross" [V, B]."""
        (teacher,) = teachers
        confidence = torch.softmax(teacher.logits, dim=-1).amax(dim=-1)  # [V, B]
        sure = (confidence[WEAK] >= self.weak_threshold).to(confidence.dtype)
        strongly = (confidence[STRONG] >= self.strong_threshold).to(confidence.dtype)
        within = self.rows(student.logits, teacher.logits, sure)
        cross = self.rows(student.logits, teacher.logits.flip(0), strongly)
        return {
            "ce": self.label_term(batch, student),
            "within": self.within_weight * within,
            "cross": self.cross_weight * cross,
        }
