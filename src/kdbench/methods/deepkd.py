"""DeepKD, a momentum for each part of the gradient (NeurIPS 2025, arXiv 2505.15133)."""

from typing import Literal

import torch
from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.losses import dkd_losses, kl_divergence, masked_log_probs
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output, Probe, Stream

TASK, TARGET, OTHERS = 0.075, -0.075, 0.05  # added to the schedule's momentum


def top_classes(teacher_logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return which of a sample's `count` classes with the largest teacher logits are not the label.

    Shapes: logits [B, K], labels [B] -> [B, K] bool; the label takes one of the places if it is
    among them.
    """
    top = teacher_logits.topk(count, dim=1).indices
    chosen = torch.zeros_like(teacher_logits, dtype=torch.bool).scatter(1, top, True)
    return chosen.scatter(1, labels.unsqueeze(1), False)


def deepkd_losses(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, top_k: int
) -> tuple[Tensor, Tensor]:
    """T^2 TCKD and T^2 NCKD of each sample, the latter over the teacher's first `top_k` classes.

    Shapes: logits [B, K], labels [B] -> two tensors [B]. With top_k 0 over all classes but the
    label, as in DKD; 0 where the label alone is left.
    """
    logits = student_logits, teacher_logits
    target, others = dkd_losses(*logits, labels, temperature)
    if top_k == 0:
        return target, others
    kept = top_classes(teacher_logits, labels, top_k)
    own, theirs = (masked_log_probs(z / temperature, kept) for z in logits)
    return target, temperature**2 * kl_divergence(theirs, own)


class DeepKD(Method):
    """DKD whose three gradients have momentum buffers each (`kdbench.distillation.streams`).

    L = ce_weight CE + min(epoch / warmup_epochs, 1) (tckd_weight TCKD + nckd_weight NCKD). With m
    the schedule's momentum, "intended" is m + 0.075 for the label, m - 0.075 for TCKD and m + 0.05
    for NCKD. "released" is what the authors' optimizer does with parameters that all three reach:
    there the label's buffer takes TCKD's momentum, m - 0.075, and 0.975 never applies. NCKD may be
    restricted to the teacher's first `top_k` classes; 0 means all.

    Departures: "intended" lets weight decay go with the label's gradient; the released optimizer
    puts it into TCKD's, which in "released" comes to the same. Its top-k mask is never active: the
    default is 0, no schedule changes it, and a variable is misspelt; so a schedule of top-k is not
    known and there is none here. Its hosts KD, MLKD and CRLD are left out: with KD it multiplies
    the batch means of NCKD and of 1 - p^t_y, which is T^2 KL for one sample alone, and with CRLD
    the masks multiply scalars of the batch.
    """

    reads_epoch = True

    def __init__(
        self,
        momenta: Literal["intended", "released"] = "intended",
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        tckd_weight: float = 1.0,
        nckd_weight: float = 8.0,
        top_k: int = 0,
        warmup_epochs: int = 20,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, warmup_epochs=warmup_epochs)
        check_weights(ce_weight=ce_weight, tckd_weight=tckd_weight, nckd_weight=nckd_weight)
        if top_k < 0 or top_k == 1:
            raise ConfigError(f"method.top_k must be 0 or above 1, not {top_k}")
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.tckd_weight, self.nckd_weight = tckd_weight, nckd_weight
        self.top_k = top_k
        self.warmup_epochs = warmup_epochs
        self.streams = (
            Stream("label", ("ce",), TASK if momenta == "intended" else TARGET),
            Stream("tckd", ("tckd",), TARGET),
            Stream("nckd", ("nckd",), OTHERS),
        )

    def setup(self, probe: Probe) -> None:
        """Refuse more classes than there are.

        Raises:
            ConfigError: top_k is larger.
        """
        if self.top_k > probe.num_classes:
            raise ConfigError(
                f"method.top_k={self.top_k} is more than the {probe.num_classes} classes: lower it"
            )

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "tckd" and "nckd", each [B]."""
        (teacher,) = teachers
        warmup = torch.clamp(batch.epoch / self.warmup_epochs, max=1.0)
        logits = student.logits, teacher.logits, batch.labels
        tckd, nckd = deepkd_losses(*logits, self.temperature, self.top_k)
        return {
            "ce": self.label_term(batch, student),
            "tckd": warmup * self.tckd_weight * tckd,
            "nckd": warmup * self.nckd_weight * nckd,
        }
