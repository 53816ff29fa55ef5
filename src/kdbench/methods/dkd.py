"""Decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv 2203.08679)."""

import torch
from torch import Tensor

from kdbench.losses import dkd_losses
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output


class DKD(Method):
    """L = ce_weight CE + min(epoch / warmup_epochs, 1) (tckd_weight TCKD + nckd_weight NCKD).

    The paper's alpha is `tckd_weight`, its beta `nckd_weight`; epochs count from 1 as in the
    released code. Departure from that code: the split is computed with logsumexp over the other
    classes instead of log(softmax) and a mask of -1000; equal to 1e-9 in float64.
    """

    reads_epoch = True

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        tckd_weight: float = 1.0,
        nckd_weight: float = 8.0,
        warmup_epochs: int = 20,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, warmup_epochs=warmup_epochs)
        check_weights(ce_weight=ce_weight, tckd_weight=tckd_weight, nckd_weight=nckd_weight)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.tckd_weight = tckd_weight
        self.nckd_weight = nckd_weight
        self.warmup_epochs = warmup_epochs

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "tckd" and "nckd", each [B]."""
        (teacher,) = teachers
        warmup = torch.clamp(batch.epoch / self.warmup_epochs, max=1.0)
        tckd, nckd = dkd_losses(student.logits, teacher.logits, batch.labels, self.temperature)
        return {
            "ce": self.label_term(batch, student),
            "tckd": warmup * self.tckd_weight * tckd,
            "nckd": warmup * self.nckd_weight * nckd,
        }
