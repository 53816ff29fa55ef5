"""Entropy-based weights for several teachers (Kwon et al., ICASSP 2020)."""

from typing import Literal

import torch
from torch import Tensor

from kdbench.losses import complement_weights, entropy, entropy_shares, kd_losses
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output


def ebkd_weights(
    teacher_logits: Tensor, selection: str = "soft", normalisation: str = "as_released"
) -> Tensor:
    """The factor of each teacher's KL for each sample.

    Shapes: [T, B, K] -> [T, B]. With H_t the entropy of softmax(z^t): "soft" is 1 - H_t / sum_j H_j
    over T ("as_released": its sum over teachers is (T - 1) / T) or over T - 1 ("normalised": 1);
    "hard" is 1 for the teacher of least entropy. One teacher has weight 1.
    """
    entropies = entropy(teacher_logits)
    count = len(teacher_logits)
    if selection == "hard":
        number = torch.arange(count, device=entropies.device).unsqueeze(1)
        return (number == entropies.argmin(dim=0)).to(entropies.dtype)
    weights = complement_weights(entropy_shares(entropies))
    return weights if normalisation == "normalised" or count == 1 else weights * (count - 1) / count


class EBKD(Method):
    """L = ce_weight CE + kd_weight sum_t w_t T^2 KL(p^t || p^s), w_t falling with t's entropy.

    The weights are those of `ebkd_weights`, the entropies at temperature 1; labels do not enter.

    Departures: the paper (on speech recognition) states the principle; the formula, its total of
    (T - 1) / T included, is that of CA-MKD's released code, which computes p log p without a guard
    (NaN where a probability underflows; here from log-softmax). Where every teacher is one-hot the
    weights are uniform. "hard" is our reading of a variant, not released.
    """

    soft_labels = True
    num_teachers = None

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        selection: Literal["soft", "hard"] = "soft",
        normalisation: Literal["as_released", "normalised"] = "as_released",
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_weights(ce_weight=ce_weight, kd_weight=kd_weight)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.selection, self.normalisation = selection, normalisation

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "kd" [B]."""
        logits = torch.stack([teacher.logits for teacher in teachers])
        weights = ebkd_weights(logits, self.selection, self.normalisation)
        loss = (weights * kd_losses(student.logits, logits, self.temperature)).sum(dim=0)
        return {"ce": self.label_term(batch, student), "kd": self.kd_weight * loss}
