"""Training with labels by a binary cross-entropy for each class (arXiv 2110.00476)."""

from torch import Tensor
from torch.nn import functional as F

from kdbench.methods.base import Method
from kdbench.types import Batch, Output


class BCE(Method):
    """L = mean_k of the binary cross-entropy of sigmoid(z_k) with the label q_k; reads no teacher.

    Of a mixed image both labels are to be found. Source: Wightman et al., "ResNet strikes back",
    section 3.1, and timm's BinaryCrossEntropy.

    Departures: none known.
    """

    soft_labels = True
    num_teachers = 0

    def label_term(self, batch: Batch, student: Output) -> Tensor:
        """The mean over classes of the binary cross-entropy, [B]."""
        targets = batch.targets
        if targets is None:
            targets = F.one_hot(batch.labels, student.logits.shape[1])
        losses = F.binary_cross_entropy_with_logits(
            student.logits, targets.to(student.logits.dtype), reduction="none"
        )
        return losses.mean(dim=1)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """One term, "ce" [B]."""
        return {"ce": self.label_term(batch, student)}
