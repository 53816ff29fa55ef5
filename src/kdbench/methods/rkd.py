"""Relational knowledge distillation (Park et al., CVPR 2019, arXiv 1904.05068)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.methods.base import Method, check_weights
from kdbench.types import Batch, Output

EPS = 1e-12  # squared distances below it count as zero: they have no direction


def relations(vectors: Tensor, squared: bool = False, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """Distances of all pairs over their mean, and cosines of the angles of all triplets.

    Shapes: [B, D] -> [B, B] with a zero diagonal, [B, B, B] with the vertex first. Finite, with
    finite gradients, also for equal vectors: their distance is sqrt(eps), their cosines are 0.
    """
    difference = vectors.unsqueeze(0) - vectors.unsqueeze(1)  # [B, B, D], f_j - f_i
    square = difference.square().sum(dim=2)
    distance = square.clamp(min=eps) if squared else square.clamp(min=eps).sqrt()
    count = len(vectors)
    distance = distance * (1 - torch.eye(count, dtype=vectors.dtype, device=vectors.device))
    mean = distance.sum() / max(count * (count - 1), 1)
    apart = (square > EPS).unsqueeze(2)
    length = torch.where(apart, square.unsqueeze(2), 1.0).sqrt()
    direction = torch.where(apart, difference / length, 0.0)
    return distance / mean.clamp(min=eps), direction @ direction.transpose(1, 2)


class RKD(Method):
    """L = ce_weight CE + distance_weight L_D + angle_weight L_A, on pooled features.

    L_D = mean_{ij} h(D^s_ij - D^t_ij), D_ij = ||f_i - f_j|| over its mean; L_A = mean_{ijk}
    h(A^s_ijk - A^t_ijk), A_ijk the cosine of the angle at i; h is the smooth L1 (Huber) function.
    Sections 3.2.1 and 3.2.2 of the paper; the weights are RepDistiller's.

    Departures: distances come from differences, not from ||a||^2 + ||b||^2 - 2ab, which loses
    close pairs in float32. Equal vectors have no direction and pass no gradient; the released code
    divides by 1e-12 there. Means run over all B^2 and B^3 entries, the zeros included, as released.
    """

    soft_labels = True
    taps = ("pooled",)

    def __init__(
        self, ce_weight: float = 1.0, distance_weight: float = 25.0, angle_weight: float = 50.0
    ) -> None:
        super().__init__()
        check_weights(
            ce_weight=ce_weight, distance_weight=distance_weight, angle_weight=angle_weight
        )
        self.ce_weight = ce_weight
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B], "distance" [] and "angle" []."""
        (teacher,) = teachers
        student_distance, student_angle = relations(student.taps["pooled"])
        teacher_distance, teacher_angle = relations(teacher.taps["pooled"])
        distance = F.smooth_l1_loss(student_distance, teacher_distance)
        angle = F.smooth_l1_loss(student_angle, teacher_angle)
        return {
            "ce": self.label_term(batch, student),
            "distance": self.distance_weight * distance,
            "angle": self.angle_weight * angle,
        }
