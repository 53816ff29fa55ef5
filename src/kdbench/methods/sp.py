"""Similarity-preserving distillation (Tung & Mori, ICCV 2019, arXiv 1907.09682)."""

from torch import Tensor
from torch.nn import functional as F

from kdbench.methods.base import Method, check_weights
from kdbench.networks.adapters import last_stage
from kdbench.types import Batch, Output, Probe


def sp_loss(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """||G^t - G^s||_F^2 / B^2, G the rows of Q Q^T scaled to length 1, Q the flattened features.

    Shapes: [B, ...] and [B, ...] -> []. Source: Tung & Mori 2019, section 3.
    """
    student, teacher = (
        F.normalize(flat @ flat.T, dim=1)
        for flat in (student_feature.flatten(1), teacher_feature.flatten(1))
    )
    return (teacher - student).square().mean()


class SP(Method):
    """L = ce_weight CE + sp_weight ||G^t - G^s||_F^2 / B^2, G the similarities within the batch.

    Read from each network's own deepest stage, whatever its shape. The value depends on the batch.

    Departures: none from RepDistiller, whose code the paper's first author checked.
    """

    soft_labels = True

    def __init__(self, ce_weight: float = 1.0, sp_weight: float = 3000.0) -> None:
        super().__init__()
        check_weights(ce_weight=ce_weight, sp_weight=sp_weight)
        self.ce_weight = ce_weight
        self.sp_weight = sp_weight

    def setup(self, probe: Probe) -> None:
        """Find the deepest stages."""
        self.student_tap, self.teacher_tap = (
            last_stage(probe.student),
            last_stage(probe.teachers[0]),
        )
        self.taps = (self.teacher_tap,)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "sp" []."""
        (teacher,) = teachers
        loss = sp_loss(student.taps[self.student_tap], teacher.taps[self.teacher_tap])
        return {"ce": self.label_term(batch, student), "sp": self.sp_weight * loss}
