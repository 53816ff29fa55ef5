"""Correlation congruence (Peng et al., ICCV 2019, arXiv 1904.01802)."""

from torch import Tensor, nn

from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output, Probe


def cc_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """mean over i of sum_d delta_{i,d} delta_{i+1,d}, delta = |e^s - e^t|, of batch neighbours.

    Shapes: both [B, D] -> []; 0 for a single sample. Source: RepDistiller's code.
    """
    delta = (student_embedding - teacher_embedding).abs()
    return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)


class CC(Method):
    """L = ce_weight CE + cc_weight mean_{i<B} sum_d delta_{i,d} delta_{i+1,d}.

    delta = |W_s f^s + b_s - W_t f^t - b_t|: both networks' pooled features embedded by trained
    linear layers. The value depends on the order of the batch, and both embeddings going to 0 is a
    trivial solution, since the teacher's is trained too.

    Departures: this is RepDistiller's version (restructured from the authors' code, and the source
    of every published CIFAR-100 number), not the paper's correlation with a Gaussian kernel.
    """

    soft_labels = True
    taps = ("pooled",)

    def __init__(
        self, ce_weight: float = 1.0, cc_weight: float = 0.02, embedding_dim: int = 128
    ) -> None:
        super().__init__()
        check_weights(ce_weight=ce_weight, cc_weight=cc_weight)
        check_positive(embedding_dim=embedding_dim)
        self.ce_weight = ce_weight
        self.cc_weight = cc_weight
        self.embedding_dim = embedding_dim

    def setup(self, probe: Probe) -> None:
        """Make the two linear embeddings."""
        self.embed_student, self.embed_teacher = (
            nn.Linear(network.taps["pooled"][0], self.embedding_dim)
            for network in (probe.student, probe.teachers[0])
        )

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "cc" []."""
        (teacher,) = teachers
        loss = cc_loss(
            self.embed_student(student.taps["pooled"]), self.embed_teacher(teacher.taps["pooled"])
        )
        return {"ce": self.label_term(batch, student), "cc": self.cc_weight * loss}
