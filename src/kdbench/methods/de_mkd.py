"""Decoupled multi-teacher distillation based on entropy (Cheng et al., ISCAS 2024): our reading."""

from typing import Literal

import torch
from torch import Tensor, nn

from kdbench.losses import (
    ca_weights,
    complement_weights,
    dkd_losses,
    entropy,
    entropy_shares,
    kd_losses,
    split_log_probs,
)
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.networks.adapters import MapProjection, check_map
from kdbench.types import Batch, Output, Probe

Weighting = Literal[
    "softmax_complement", "ratio_complement", "softmax_neg", "inverse", "uniform", "ca"
]
LEAST = 1e-12  # of an entropy that is divided by: a one-hot teacher's is 0


def entropy_weights(entropies: Tensor, weighting: str) -> Tensor:
    """Weights of T teachers that fall with their entropies H and sum to 1 over the teachers.

    Shapes: [T, B] -> [T, B]. "softmax_complement" (1 - softmax_t(H)) / (T - 1), "ratio_complement"
    (1 - H_t / sum_j H_j) / (T - 1), "softmax_neg" softmax_t(-H), "inverse" (1 / H_t) / sum_j 1 /
    H_j, "uniform" 1 / T.
    """
    if weighting == "softmax_complement":
        return complement_weights(torch.softmax(entropies, dim=0))
    if weighting == "ratio_complement":
        return complement_weights(entropy_shares(entropies))
    if weighting == "softmax_neg":
        return torch.softmax(-entropies, dim=0)
    if weighting == "inverse":
        return torch.softmax(-entropies.clamp(min=LEAST).log(), dim=0)
    return torch.full_like(entropies, 1 / len(entropies))


def log_entropy(log_probs: Tensor) -> Tensor:
    """Entropy of distributions given by their logarithms, [B, K] -> [B]."""
    return -(log_probs.exp() * log_probs).sum(dim=1)


class DEMKD(Method):
    """L = ce_weight CE + c sum_t w_t T^2 (tckd_weight TCKD_t + nckd_weight NCKD_t) + features.

    c = kd_weight min(epoch / warmup_epochs, 1); TCKD and NCKD are DKD's split of KL(p^t || p^s).
    w_t falls with the entropy of softmax(z^t / entropy_temperature) by `weighting`, per sample; the
    features are feature_weight sum_t w_t mean (r_t(F^s) - F^t)^2 on the maps that the classifiers
    read the average of, r_t resizing, 1x1 convolution, BN, ReLU. `decoupling`: "dkd" as above;
    "none", w_t T^2 KL_t; "weights_split", TCKD weighted by the entropy of (target, not target) and
    NCKD by that of the others; "entropy_on_nckd", TCKD averaged. `weighting` "ca" is CA-MKD's.

    Departures: the equations of the paper (and of the journal version, Mathematics 12(11) 1672)
    were not at hand: this is a reconstruction from its abstract, a run of it is not a reproduction.
    Every choice here, apart from entropy weights per sample, a decoupled loss and feature
    distillation, is ours and marked INFERRED in the configuration. `divide_by_k` adds CA-MKD's 1/T.
    """

    reads_epoch = True
    num_teachers = None

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        tckd_weight: float = 1.0,
        nckd_weight: float = 8.0,
        warmup_epochs: int = 20,
        feature_weight: float = 0.0,
        weighting: Weighting = "softmax_complement",
        entropy_temperature: float = 1.0,
        decoupling: Literal["dkd", "none", "weights_split", "entropy_on_nckd"] = "dkd",
        divide_by_k: bool = False,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, entropy_temperature=entropy_temperature)
        check_weights(ce_weight=ce_weight, kd_weight=kd_weight, feature_weight=feature_weight)
        check_weights(tckd_weight=tckd_weight, nckd_weight=nckd_weight, warmup_epochs=warmup_epochs)
        self.temperature, self.entropy_temperature = temperature, entropy_temperature
        self.ce_weight, self.kd_weight = ce_weight, kd_weight
        self.tckd_weight, self.nckd_weight = tckd_weight, nckd_weight
        self.feature_weight, self.warmup_epochs = feature_weight, warmup_epochs
        self.weighting, self.decoupling, self.divide_by_k = weighting, decoupling, divide_by_k
        self.taps = ("map",) if feature_weight > 0 else ()

    def setup(self, probe: Probe) -> None:
        """Make a projection for each teacher, where there is a feature term."""
        self.projections = nn.ModuleList()
        for teacher in probe.teachers if self.feature_weight > 0 else ():
            student = check_map(probe.student, "map")
            self.projections.append(MapProjection(student, check_map(teacher, "map")))

    def weights(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weigh the teachers for all of KD, for TCKD and NCKD: logits [T, B, K] -> three [T, B]."""
        if self.weighting == "ca":
            whole = ca_weights(logits.unbind(), labels)
        else:
            whole = entropy_weights(entropy(logits, self.entropy_temperature), self.weighting)
        if self.decoupling == "entropy_on_nckd":
            return whole, torch.full_like(whole, 1 / len(whole)), whole
        if self.decoupling == "weights_split" and self.weighting != "ca":
            splits = [split_log_probs(z, labels, self.entropy_temperature) for z in logits]
            target, others = (
                entropy_weights(torch.stack([log_entropy(p) for p in part]), self.weighting)
                for part in zip(*splits, strict=True)
            )
            return whole, target, others
        return whole, whole, whole

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "tckd" and "nckd" (or "kd"), and where it has a weight "feature", all [B]."""
        logits = torch.stack([teacher.logits for teacher in teachers])
        whole, target, others = self.weights(logits, batch.labels)
        share = 1 / len(teachers) if self.divide_by_k else 1.0
        warmup = torch.clamp(batch.epoch / self.warmup_epochs, max=1.0) if self.warmup_epochs else 1
        scale = self.kd_weight * share * warmup
        terms = {"ce": self.label_term(batch, student)}
        if self.decoupling == "none":
            losses = kd_losses(student.logits, logits, self.temperature)
            terms["kd"] = scale * (whole * losses).sum(dim=0)
        else:
            parts = [dkd_losses(student.logits, z, batch.labels, self.temperature) for z in logits]
            tckd, nckd = (torch.stack(part) for part in zip(*parts, strict=True))
            terms["tckd"] = scale * self.tckd_weight * (target * tckd).sum(dim=0)
            terms["nckd"] = scale * self.nckd_weight * (others * nckd).sum(dim=0)
        if self.feature_weight > 0:
            errors = [
                (projection(student.taps["map"]) - teacher.taps["map"]).square().mean(dim=(1, 2, 3))
                for projection, teacher in zip(self.projections, teachers, strict=True)
            ]
            weighted = (whole * torch.stack(errors)).sum(dim=0)
            terms["feature"] = self.feature_weight * share * weighted
        return terms
