"""Probabilistic knowledge transfer (Passalis & Tefas, ECCV 2018, arXiv 1803.10837)."""

import torch
from torch import Tensor

from kdbench.methods.base import Method, check_weights
from kdbench.types import Batch, Output

EPS = 1e-7  # the authors' code; part of what was published, in float32 it matters


def neighbour_probabilities(vectors: Tensor, eps: float = EPS) -> Tensor:
    """(cosine + 1) / 2 of all pairs, each row scaled to sum 1, the diagonal kept.

    Shapes: [B, D] -> [B, B].
    """
    unit = vectors / (torch.linalg.vector_norm(vectors, dim=1, keepdim=True) + eps)
    similarity = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)


def pkt_loss(student_vectors: Tensor, teacher_vectors: Tensor, eps: float = EPS) -> Tensor:
    """mean over B^2 of P^t log((P^t + eps) / (P^s + eps)), P the neighbour probabilities.

    Shapes: [B, D] and [B, D'] -> []. Source: the authors' code (passalis/probabilistic_kt).
    """
    student, teacher = (neighbour_probabilities(v, eps) for v in (student_vectors, teacher_vectors))
    return (teacher * ((teacher + eps).log() - (student + eps).log())).mean()


class PKT(Method):
    """L = ce_weight CE + pkt_weight mean_{ij} P^t_ij log(P^t_ij / P^s_ij), on pooled features.

    P_ij is the share of sample j among the similarities (cosine + 1) / 2 of sample i. The weight is
    large because the mean runs over B^2 entries of about 1 / B.

    Departures: none; a vector of zeros stays zero by its norm + 1e-7, where the released code also
    replaces NaN in place.
    """

    soft_labels = True
    taps = ("pooled",)

    def __init__(self, ce_weight: float = 1.0, pkt_weight: float = 30000.0) -> None:
        super().__init__()
        check_weights(ce_weight=ce_weight, pkt_weight=pkt_weight)
        self.ce_weight = ce_weight
        self.pkt_weight = pkt_weight

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "pkt" []."""
        (teacher,) = teachers
        loss = pkt_loss(student.taps["pooled"], teacher.taps["pooled"])
        return {"ce": self.label_term(batch, student), "pkt": self.pkt_weight * loss}
