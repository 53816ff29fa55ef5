"""Averaged teachers: the plain baseline of distillation from several teachers."""

import math
from typing import Literal

import torch
from torch import Tensor

from kdbench.losses import kd_loss, kd_losses, kl_divergence
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output


class Aver(Method):
    """L = ce_weight CE + kd_weight T^2 mean_t KL(p^t || p^s), p = softmax(z / T).

    `average` says what is averaged: "loss" as above; "prob", KL(mean_t p^t || p^s), which has the
    same gradient and a value lower by T^2 mean_t KL(p^t || mean p); "logit",
    KL(softmax(mean_t z^t / T) || p^s), a different and sharper target. One teacher is KD.

    Departures: none; "loss" is AVERAGE_LOSS of the released codes of AE-KD and CA-MKD.
    """

    soft_labels = True
    num_teachers = None

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        average: Literal["loss", "prob", "logit"] = "loss",
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_weights(ce_weight=ce_weight, kd_weight=kd_weight)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.average = average

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "kd" [B]."""
        logits = torch.stack([teacher.logits for teacher in teachers])  # [T, B, K]
        if self.average == "loss":
            loss = kd_losses(student.logits, logits, self.temperature).mean(dim=0)
        elif self.average == "prob":
            log_probs = torch.log_softmax(logits / self.temperature, dim=2)
            target = torch.logsumexp(log_probs, dim=0) - math.log(len(teachers))
            own = torch.log_softmax(student.logits / self.temperature, dim=1)
            loss = self.temperature**2 * kl_divergence(target, own)
        else:
            loss = kd_loss(student.logits, logits.mean(dim=0), self.temperature)
        return {"ce": self.label_term(batch, student), "kd": self.kd_weight * loss}
