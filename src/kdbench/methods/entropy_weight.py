"""Entropy-weighted distillation: ER-KD and EA-KD (Su et al., ICCV 2025, arXiv 2311.13621)."""

import math
from typing import Literal

import torch
from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.losses import entropy
from kdbench.methods.base import Method, Terms, Wrapper, check_positive
from kdbench.types import Batch, Output

Weight = Literal["er", "ea", "interact", "inverse", "none"]


def entropy_weight(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weight: Weight,
    temperature: float,
    bound: float | None = None,
) -> Tensor:
    """The weight of each sample, from the entropies H of softmax(z / T') and U, their bound.

    er: H^t (ER-KD); ea: H^t (1 + H^s / U) / 2 (EA-KD); interact: H^t H^s / U, and inverse: U - H^t,
    of EA-KD's ablation; none: 1. Without `bound`, U = log K.

    Shapes: logits [..., B, K] -> [..., B]. Source: arXiv 2311.13621 (v1: er, v3: the others).
    """
    upper = math.log(teacher_logits.shape[-1]) if bound is None else bound
    base = entropy(teacher_logits, temperature)
    if weight == "er":
        return base
    if weight == "none":
        return torch.ones_like(base)
    if weight == "inverse":
        return upper - base
    interaction = base * entropy(student_logits, temperature) / upper
    return interaction if weight == "interact" else (base + interaction) / 2


class EntropyWeight(Wrapper):
    """Every distillation term of the inner recipe, weighted per sample: mean_b w_b l_b.

    The label term is never weighted, nor are the inner recipe's `batch_terms`; any other term
    that couples the batch is refused. w comes from the raw logits that this wrapper sees, at its
    own temperature T', and is a constant for the gradient. Of several views each has its own
    weights; a term with one value per image takes those of the first.

    weight_reduction = "batch_outer" is mean(w) mean(l), a slip of the released ER-DKD (and
    ER-DIST), where shapes [B] and [B, 1] meet and no sample is weighted; normalise =
    "batch_mean" divides w by its mean over the batch, so that only the samples' shares change.
    Both couple the batch: terms are then scalars. bound = 100 is the released EA-KD and EA-DKD
    on CIFAR, where w is close to H^t / 2.

    Departures: the bound is log K, as in the paper, and T' is read by every host (the released
    codes ignore theirs for some). No 1e-10 inside the logarithm; on CIFAR-100 it moves the
    released EA-KD loss by 4e-9 of itself. "inverse" is INFERRED, the ablation's formula is not
    known. ER-MLD's weight per KL temperature is left out, as is FCFD.
    """

    def __init__(
        self,
        inner: Method,
        weight: Weight = "er",
        entropy_temperature: float = 4.0,
        bound: Literal["log_c"] | float = "log_c",
        weight_reduction: Literal["per_sample", "batch_outer"] = "per_sample",
        normalise: Literal["none", "batch_mean"] = "none",
        detach: bool = True,
    ) -> None:
        super().__init__(inner)
        check_positive(entropy_temperature=entropy_temperature)
        if bound != "log_c":
            check_positive(bound=bound)
        if inner.num_teachers != 1:
            raise ConfigError("method.inner reads several teachers: the weight is one teacher's")
        self.tasks = inner.tasks  # a detector's samples are its proposals
        self.weight: Weight = weight
        self.entropy_temperature = entropy_temperature
        self.bound = None if bound == "log_c" else float(bound)
        self.weight_reduction, self.normalise, self.detach = weight_reduction, normalise, detach

    def weights(self, student: Output, teachers: tuple[Output, ...]) -> Tensor:
        """W, [B] or [V, B]."""
        logits = student.logits, teachers[0].logits
        weights = entropy_weight(*logits, self.weight, self.entropy_temperature, self.bound)
        if self.normalise == "batch_mean":
            weights = weights / weights.mean(dim=-1, keepdim=True)
        return weights.detach() if self.detach else weights

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """The inner recipe's terms; weighted ones are scalars where the weights couple the batch.

        Raises:
            ConfigError: a term has no samples to weigh.
        """
        return self._weighted(self.inner(batch, student, teachers), self.weights(student, teachers))

    def _weighted(self, terms: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
        kept = ("ce", *self.batch_terms)
        return {
            name: term if name in kept else self._weigh(name, term, weights)
            for name, term in terms.items()
        }

    def _weigh(self, name: str, term: Tensor, weights: Tensor) -> Tensor:
        if term.ndim == 0:
            raise ConfigError(
                f"method.inner: term '{name}' of {type(self.inner).__name__} couples the batch, "
                "so its samples cannot be weighted"
            )
        weights = weights[0] if weights.ndim > term.ndim else weights
        if self.weight_reduction == "batch_outer":
            return (weights.mean(dim=-1) * term.mean(dim=-1)).mean()
        weighted = weights * term
        return weighted if self.normalise == "none" else weighted.mean()

    def observe(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """The inner recipe's numbers, and the weight; KD x mean weight is the control to run."""
        seen = self.inner.observe(batch, student, teachers)
        return seen | {"weight": self.weights(student, teachers)}

    def terms_and_curves(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> tuple[Terms, Terms]:
        """Return `forward` and `observe` from one computation of the weight."""
        weights = self.weights(student, teachers)
        terms, seen = self.inner.terms_and_curves(batch, student, teachers)
        return self._weighted(terms, weights), seen | {"weight": weights}
