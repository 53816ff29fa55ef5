"""Plain training with labels: the baseline of every table, and how teachers are trained."""

from torch import Tensor

from kdbench.methods.base import Method
from kdbench.types import Batch, Output


class CE(Method):
    """L = mean_b -log softmax(z_b)_{y_b}; reads no teacher."""

    soft_labels = True
    tasks = ("classification", "detection")
    num_teachers = 0

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """One term, "ce" [B]."""
        return {"ce": self.label_term(batch, student)}
