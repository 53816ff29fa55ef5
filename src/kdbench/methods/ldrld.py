"""LDRLD, local dense relations between logits (Xu et al., ICCV 2025, arXiv 2507.15911)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.errors import ConfigError
from kdbench.losses import kd_loss
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output, Probe


def pair_weights(count: int) -> Tensor:
    """2 exp(-0.05 (i + j)) / (1.5 + j - i) for ranks i < j from 1, else 0: [count, count]."""
    rank = torch.arange(1, count + 1, dtype=torch.float64)
    first, second = rank.unsqueeze(1), rank.unsqueeze(0)
    weights = 2 * torch.exp(-0.05 * (first + second)) / (1.5 + second - first).clamp(min=1)
    return weights.triu(diagonal=1)


def pairs_loss(student: Tensor, teacher: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """T^2 sum_ij w_ij KL over the two classes i and j alone, of each sample.

    Shapes: logits by rank [B, R], weights [R, R] -> [B]. Two classes are one difference d of
    logits: their probabilities are sigmoid(d / T) and sigmoid(-d / T).
    """
    own, theirs = (
        (logits.unsqueeze(2) - logits.unsqueeze(1)) / temperature for logits in (student, teacher)
    )
    divergence = sum(
        torch.sigmoid(sign * theirs) * (F.logsigmoid(sign * theirs) - F.logsigmoid(sign * own))
        for sign in (1, -1)
    )
    return temperature**2 * (weights.to(student.dtype) * divergence).sum(dim=(1, 2))


def ldrld_losses(
    student_logits: Tensor, teacher_logits: Tensor, weights: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The local relations and the remaining classes' KL of each sample, both with T^2.

    Shapes: logits [B, K], pair weights [R, R] -> two tensors [B]. The student ranks: the first R
    classes are compared pair by pair and together, the others together. With R = 2 the one pair
    weighs both times.
    """
    count = len(weights)
    order = student_logits.detach().argsort(dim=1, descending=True)
    student, teacher = student_logits.gather(1, order), teacher_logits.gather(1, order)
    first = student[:, :count], teacher[:, :count]
    together = kd_loss(*first, temperature)
    if count == 2:
        together = weights[0, 1].to(student.dtype) * together
    pairs = count * (count - 1) // 2
    local = (pairs_loss(*first, weights, temperature) + together) / (pairs + 1)
    return local, kd_loss(student[:, count:], teacher[:, count:], temperature)


class LDRLD(Method):
    """L = ce_weight CE + local_weight LDR + rest_weight RNT.

    LDR = [sum_{i<j<=R} w_ij KL_ij + KL_R] / (R (R - 1) / 2 + 1) over the R classes that the student
    ranks first, KL_ij over two of them and KL_R over all R; RNT is the KL over the others. All with
    T^2. The released command's -a is `local_weight`, its -b `rest_weight`.

    Departures: with R = K the released code makes the rest term the KL over all classes, here it
    is 0. Its training loop multiplies the whole loss by the label weight again (1 as published).
    """

    soft_labels = True
    weights: Tensor  # [R, R]

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        local_weight: float = 10.5,
        rest_weight: float = 7.0,
        top_k: int = 7,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_weights(ce_weight=ce_weight, local_weight=local_weight, rest_weight=rest_weight)
        if top_k < 2:
            raise ConfigError(f"method.top_k must be 2 or more, not {top_k}")
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.local_weight, self.rest_weight = local_weight, rest_weight
        self.top_k = top_k
        self.register_buffer("weights", pair_weights(top_k).float(), persistent=False)

    def setup(self, probe: Probe) -> None:
        """Refuse more ranks than there are classes.

        Raises:
            ConfigError: there are.
        """
        if self.top_k > probe.num_classes:
            raise ConfigError(
                f"method.top_k={self.top_k} is more than the {probe.num_classes} classes: lower it"
            )

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "local" and "rest", each [B]."""
        (teacher,) = teachers
        logits = student.logits, teacher.logits
        local, rest = ldrld_losses(*logits, self.weights, self.temperature)
        return {
            "ce": self.label_term(batch, student),
            "local": self.local_weight * local,
            "rest": self.rest_weight * rest,
        }
