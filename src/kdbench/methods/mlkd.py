"""Multi-level logit distillation (Jin, Wang & Lin, CVPR 2023)."""

from typing import Literal

import torch
from torch import Tensor

from kdbench.losses import kd_loss, total
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output

WEAK, STRONG = 0, 1  # the views
SHARED = (3.0, 5.0)  # temperatures beside the base one
WEAK_ONLY = (2.0, 6.0)  # those at which the released code reads weak logits twice


def class_correlation(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, gate: Tensor | float = 1.0
) -> Tensor:
    """sum_kl gate_l (C^t - C^s)_kl^2 / K, with C = P^T P [K, K] and P = softmax(z / T).

    Shapes: logits [B, K], gate [K] or [] -> []. Source: Jin et al. 2023 and its release.
    """
    student = torch.softmax(student_logits / temperature, dim=1)
    teacher = torch.softmax(teacher_logits / temperature, dim=1)
    return _gram_distance(student, teacher, gate)


def batch_correlation(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, gate: Tensor | float = 1.0
) -> Tensor:
    """sum_ij gate_j (G^t - G^s)_ij^2 / B, with G = P P^T [B, B] and P = softmax(z / T).

    Shapes: logits [B, K], gate [B] or [] -> []. Source: Jin et al. 2023 and its release.
    """
    student = torch.softmax(student_logits / temperature, dim=1)
    teacher = torch.softmax(teacher_logits / temperature, dim=1)
    return _gram_distance(student.T, teacher.T, gate)


def _gram_distance(student: Tensor, teacher: Tensor, gate: Tensor | float) -> Tensor:
    """Gated squared distance of the columns' inner products, over the number of columns."""
    difference = teacher.T @ teacher - student.T @ student
    return (gate * difference.square()).sum() / len(difference)


def lower_half(confidence: Tensor) -> Tensor:
    """1 where a confidence is at or below the median, else 0.

    Shapes: [N] -> [N]. Below the lower of two middle values or below their mean is the same set,
    so this is the release's percentile without its rounding.
    """
    return (confidence <= confidence.median()).to(confidence.dtype)


class MLKD(Method):
    """L = ce_weight (CE_weak + CE_strong) + kd_weight (instance + class + batch), over five T.

    Views: weak is crop and flip, strong the same with RandAugment. T is `temperature`, 3, 5, 2, 6.
    With m the samples whose teacher confidence max_k p^t (weak, T = 1) is at or below the batch's
    median, and c the classes whose summed probability is at or below the classes' median:

    mode = "released", what Jin-Ying/Multi-Level-Logit-Distillation computes and its table contains
    (baselines 4.23 and 7.8): every loss is a scalar before it meets its gate, so that a gate is the
    share of its ones (1/2 for even numbers without ties); the strong instance sum reads weak
    logits at T = 2 and 6; the strong class and batch terms are computed and never added:
        instance = share(m) sum_T KLT_weak(T) + sum_{2, 6} KLT_weak(T) + sum_{4, 3, 5} KLT_strong(T)
        class = share(c) sum_T |C^t - C^s|^2 / K,  batch = share(m) sum_T |G^t - G^s|^2 / B  (weak)

    mode = "paper", the gates select, and both views count at every T:
        instance = sum_T KLT_strong(T),  weak_instance = mean_b m_b sum_T KLT_weak(T)_b
        class = sum_T [sum_kl c_l (C^t - C^s)_kl^2 / K (weak) + |C^t - C^s|^2 / K (strong)]
        batch = sum_T sum_ij m_j (G^t - G^s)_ij^2 / B, of either view

    "instance" is [V, B], a row per view, times V because the step takes means. A gate that selects
    couples the batch, so "weak_instance" is a scalar and a per-sample weight leaves it alone.

    Departures: none from the release in mode "released"; its strong view is in data/randaugment.
    Mode "paper" is reconstructed from the release's lines (its strong batch term, never added, is
    gated too); no number is published for it.
    """

    views = 2
    batch_terms = ("class", "batch", "weak_instance")

    def __init__(
        self,
        mode: Literal["paper", "released"] = "released",
        temperature: float = 4.0,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_weights(ce_weight=ce_weight, kd_weight=kd_weight)
        self.released = mode == "released"
        self.temperatures = (temperature, *SHARED, *WEAK_ONLY)
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight

    def gates(self, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        """The gate of samples, [B] or its mean [], and of classes, [K] or its mean []."""
        probabilities = torch.softmax(teacher_logits, dim=1)
        samples = lower_half(probabilities.amax(dim=1))
        classes = lower_half(probabilities.sum(dim=0))
        return (samples.mean(), classes.mean()) if self.released else (samples, classes)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B], "instance" [V, B], "class" [], "batch" []; maybe "weak_instance" []."""
        (teacher,) = teachers
        weak, strong = zip(student.logits.unbind(), teacher.logits.unbind(), strict=True)
        samples, classes = self.gates(weak[1])
        weak_instance = samples * total(kd_loss(*weak, t) for t in self.temperatures)
        class_level = total(class_correlation(*weak, t, classes) for t in self.temperatures)
        batch_level = total(batch_correlation(*weak, t, samples) for t in self.temperatures)
        terms = {"ce": self.label_term(batch, student)}
        if self.released:
            weak_row = weak_instance + total(kd_loss(*weak, t) for t in WEAK_ONLY)
            strong_row = total(kd_loss(*strong, t) for t in self.temperatures[: -len(WEAK_ONLY)])
        else:
            terms["weak_instance"] = self.kd_weight * weak_instance.mean()
            strong_row = total(kd_loss(*strong, t) for t in self.temperatures)
            weak_row = torch.zeros_like(strong_row)
            class_level += total(class_correlation(*strong, t) for t in self.temperatures)
            batch_level += total(batch_correlation(*strong, t, samples) for t in self.temperatures)
        rows = torch.stack([weak_row, strong_row])
        terms["instance"] = self.kd_weight * len(rows) * rows
        terms["class"] = self.kd_weight * class_level
        terms["batch"] = self.kd_weight * batch_level
        return terms
