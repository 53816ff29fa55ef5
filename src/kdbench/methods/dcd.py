"""DCD, discriminative and consistent distillation (arXiv 2407.11802)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.losses import kl_divergence
from kdbench.methods.base import Method, check_finite, check_positive, check_weights
from kdbench.types import Batch, Output, Probe


def dcd_loss(
    student: Tensor, teacher: Tensor, log_scale: Tensor, invariance_weight: float, max_scale: float
) -> Tensor:
    """InfoNCE of student b against teacher b in the batch + weight * mean KL(columns || rows).

    Similarities are scale * cosine, scale = min(exp(log_scale), max_scale). Rows are a student's
    distribution over teachers, columns a teacher's over students; neither side is detached.
    Shapes: embeddings [B, D] each, log_scale [] -> [].
    """
    scale = log_scale.exp().clamp(max=max_scale)
    similarities = scale * F.normalize(student, dim=1) @ F.normalize(teacher, dim=1).T
    rows = torch.log_softmax(similarities, dim=1)
    columns = torch.log_softmax(similarities, dim=0).T
    return -rows.diagonal().mean() + invariance_weight * kl_divergence(columns, rows).mean()


class DCD(Method):
    """L = ce_weight CE + dcd_weight DCD on embeddings of the pooled vectors, trained with it.

    DCD is contrast within the batch and agreement of its two directions (`dcd_loss`), with a scale
    that is learned; it couples the batch, so it is one scalar.

    Departures: the released code also learns a bias that it adds to all similarities; both parts
    are the same with any bias, its gradient is 0, and it is left out.
    """

    soft_labels = True
    taps = ("pooled",)
    batch_terms = ("dcd",)

    def __init__(
        self,
        ce_weight: float = 1.0,
        dcd_weight: float = 1.0,
        invariance_weight: float = 0.5,
        embedding_dim: int = 128,
        initial_log_scale: float = 1.0,
        max_scale: float = 10.0,
    ) -> None:
        super().__init__()
        check_weights(ce_weight=ce_weight, dcd_weight=dcd_weight)
        check_weights(invariance_weight=invariance_weight)
        check_positive(embedding_dim=embedding_dim, max_scale=max_scale)
        check_finite(initial_log_scale=initial_log_scale)
        self.ce_weight, self.dcd_weight = ce_weight, dcd_weight
        self.invariance_weight, self.max_scale = invariance_weight, max_scale
        self.embedding_dim = embedding_dim
        self.log_scale = nn.Parameter(torch.tensor(initial_log_scale))

    def setup(self, probe: Probe) -> None:
        """The embeddings of the two pooled vectors."""
        widths = (network.taps["pooled"][0] for network in (probe.student, probe.teachers[0]))
        self.embed_student, self.embed_teacher = (
            nn.Linear(width, self.embedding_dim) for width in widths
        )

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "dcd" []."""
        (teacher,) = teachers
        own = self.embed_student(student.taps["pooled"])
        theirs = self.embed_teacher(teacher.taps["pooled"])
        settings = self.log_scale, self.invariance_weight, self.max_scale
        loss = dcd_loss(own, theirs, *settings)
        return {"ce": self.label_term(batch, student), "dcd": self.dcd_weight * loss}
