"""DIST (Huang et al., NeurIPS 2022, arXiv 2205.10536)."""

import torch
from torch import Tensor

from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output

EPSILON = 1e-8  # of the released code, added to the denominator; rho is 0 where a row is constant


def pearson(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """The correlation rho of two tensors along `dim`: the cosine of their centred values.

    Shapes: both [B, K] -> [B] for dim=1, [K] for dim=0.
    """
    first = first - first.mean(dim, keepdim=True)
    second = second - second.mean(dim, keepdim=True)
    norms = torch.linalg.vector_norm(first, dim=dim) * torch.linalg.vector_norm(second, dim=dim)
    return (first * second).sum(dim) / (norms + EPSILON)


def dist_losses(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """T^2 (1 - rho_b) of each sample over the classes, T^2 (1 - mean_k rho_k) over the batch.

    Shapes: logits [B, K] -> [B] and [].
    """
    student = torch.softmax(student_logits / temperature, dim=1)
    teacher = torch.softmax(teacher_logits / temperature, dim=1)
    inter = temperature**2 * (1 - pearson(student, teacher, dim=1))
    intra = temperature**2 * (1 - pearson(student, teacher, dim=0).mean())
    return inter, intra


class DIST(Method):
    """L = ce_weight CE + inter_weight L_inter + intra_weight L_intra, Pearson matching.

    L_inter = T^2 (1 - rho(p^s_b, p^t_b)) relates the classes of a sample, L_intra = T^2 (1 -
    mean_k rho(p^s_k, p^t_k)) the samples of the batch for a class; rho is Pearson's correlation
    of the probabilities at temperature T. The released code weighs 2 (L_inter + L_intra), which is
    what the defaults say.

    "intra" couples the batch: it changes with the batch size and a per-sample weight leaves it
    alone.

    Departures: none known.
    """

    soft_labels = True
    batch_terms = ("intra",)

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        inter_weight: float = 2.0,
        intra_weight: float = 2.0,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_weights(ce_weight=ce_weight, inter_weight=inter_weight, intra_weight=intra_weight)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.inter_weight = inter_weight
        self.intra_weight = intra_weight

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B], "inter" [B] and "intra" []."""
        (teacher,) = teachers
        inter, intra = dist_losses(student.logits, teacher.logits, self.temperature)
        return {
            "ce": self.label_term(batch, student),
            "inter": self.inter_weight * inter,
            "intra": self.intra_weight * intra,
        }
