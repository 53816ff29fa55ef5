"""Label smoothing (Szegedy et al., CVPR 2016, arXiv 1512.00567)."""

from typing import Literal

import torch
from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.losses import smoothed_labels
from kdbench.methods.base import Method
from kdbench.types import Batch, Output


class LabelSmoothing(Method):
    """L = -sum_k q_k log softmax(z)_k, q the label with `smoothing` spread over classes; section 7.

    Two conventions are in use. `spread="all"`: every class gets smoothing / K, the label too, as in
    the paper and in PyTorch's cross-entropy. `spread="others"`: the K-1 other classes share it and
    the label keeps exactly 1 - smoothing, as in the baselines of Tf-KD and DR-KD.

    Departures: none known.
    """

    num_teachers = 0

    def __init__(self, smoothing: float = 0.1, spread: Literal["all", "others"] = "all") -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ConfigError(f"method.smoothing must be 0 or more and below 1, not {smoothing}")
        self.smoothing = smoothing
        self.spread = spread

    def label_term(self, batch: Batch, student: Output) -> Tensor:
        """The smoothed cross-entropy [B]."""
        target = smoothed_labels(student.logits, batch.labels, self.smoothing, self.spread)
        return -(target * torch.log_softmax(student.logits, dim=1)).sum(dim=1)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """One term, "ce" [B]."""
        return {"ce": self.label_term(batch, student)}
