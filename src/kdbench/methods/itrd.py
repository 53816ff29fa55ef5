"""Information-theoretic representation distillation (Miles et al., BMVC 2022, arXiv 2112.00459)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output, Probe

SMALLEST_VARIANCE = 1e-10  # below it a dimension is constant in the batch, as a dead ReLU's


def standardised(features: Tensor) -> Tensor:
    """(f - mean) / std over the batch, with the unbiased std; 0 where a dimension is constant.

    Shapes: [B, D] -> [B, D].
    """
    centred = features - features.mean(dim=0)
    variance = centred.square().sum(dim=0) / max(len(features) - 1, 1)
    return centred * torch.rsqrt(variance.clamp(min=SMALLEST_VARIANCE))


def correlation_loss(student: Tensor, teacher: Tensor, order: float) -> Tensor:
    """log2 sum_d |c_d - 1|^(2 order), c_d = <f^s_d, f^t_d> / B of the standardised features.

    Shapes: both [B, D] -> []. Unbounded below in principle; for equal features c_d = 1 - 1 / B.
    Source: Miles et al. 2022 and its code.
    """
    correlation = (standardised(student) * standardised(teacher)).mean(dim=0)
    return (correlation - 1).square().pow(order).sum().log2()


def mutual_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """sum_ij (G / tr G)^2 - (M / tr M)^2 with M = G o G^t, of the L2-normalised features.

    Shapes: [B, D] and [B, D'] -> []. G and G^t are the Gram matrices of student and teacher; each
    of G and M is divided by its own trace. Source: as the above.
    """
    student, teacher = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    gram = student @ student.T
    joint = gram * (teacher @ teacher.T)
    # Not `trace`, whose gradient waits for a GPU.
    of_student, of_both = (g / g.diagonal().sum() for g in (gram, joint))
    return of_student.square().sum() - of_both.square().sum()


class ITRD(Method):
    """L = ce_weight CE + correlation_weight L_corr + mutual_weight L_mut, on pooled vectors.

    Both read the student's vector through one linear layer to the teacher's width; the mutual
    term does without it where the widths agree. The paper's alpha is `order`.

    Departures: a dimension that is constant in a batch (a dead ReLU of the teacher) has
    correlation 0, where the released code divides 0 by 0 and the loss is lost. As in that code
    there is no KD term.
    """

    soft_labels = True
    taps = ("pooled",)
    batch_terms = ("correlation", "mutual")

    def __init__(
        self,
        order: float = 1.01,
        ce_weight: float = 1.0,
        correlation_weight: float = 2.0,
        mutual_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_positive(order=order)
        check_weights(
            ce_weight=ce_weight, correlation_weight=correlation_weight, mutual_weight=mutual_weight
        )
        self.order = order
        self.ce_weight = ce_weight
        self.correlation_weight = correlation_weight
        self.mutual_weight = mutual_weight

    def setup(self, probe: Probe) -> None:
        """The embedding, from the student's width to the teacher's."""
        (inputs,), (outputs,) = probe.student.taps["pooled"], probe.teachers[0].taps["pooled"]
        self.embed = nn.Linear(inputs, outputs)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B], "correlation" [] and "mutual" []."""
        (teacher,) = teachers
        feature, target = student.taps["pooled"], teacher.taps["pooled"]
        embedded = self.embed(feature)
        compared = feature if feature.shape == target.shape else embedded
        correlation = correlation_loss(embedded, target, self.order)
        return {
            "ce": self.label_term(batch, student),
            "correlation": self.correlation_weight * correlation,
            "mutual": self.mutual_weight * mutual_loss(compared, target),
        }
