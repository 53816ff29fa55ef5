"""Wasserstein distance between logits (Lv et al., NeurIPS 2024, arXiv 2412.08139)."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.errors import ConfigError
from kdbench.losses import cross_entropy
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output, Probe

LEAST = 0.0125  # exp(-1 / LEAST) is the smallest kernel entry; below it float32 has no room


def class_costs(prototypes: Tensor, sharpness: float) -> Tensor:
    """What it costs to move probability between two classes: 1 - exp(-sharpness (1 - cosine)).

    Shapes: prototypes [K, D] -> [K, K], symmetric, 0 on the diagonal, below 1.
    """
    directions = F.normalize(prototypes, dim=1)
    distances = (1 - directions @ directions.T).clamp(min=0).fill_diagonal_(0)
    return 1 - torch.exp(-sharpness * distances)


def log_matmul(log_weights: Tensor, matrix: Tensor) -> Tensor:
    """log(exp(log_weights) @ matrix), shifted by each row's largest weight.

    Shapes: log_weights [B, K] (may hold -inf), matrix [K, K] of positive numbers -> [B, K].
    """
    shift = log_weights.detach().amax(dim=1, keepdim=True)
    return torch.log(torch.exp(log_weights - shift) @ matrix) + shift


def transport_cost(
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    costs: Tensor,
    regularization: float,
    iterations: int,
) -> Tensor:
    """sum_ij P_ij C_ij of each sample, P the plan after some Sinkhorn iterations in log space.

    Shapes: log-probabilities [B, K], -inf for a class that takes no part, costs [K, K] -> [B].
    P = diag(u) K diag(v) with K = exp(-C / regularization); v meets the teacher's marginal, then u
    the student's, so P's rows sum to the student's probabilities exactly.
    """
    kernel = torch.exp(-costs / regularization)
    absent = student_log_probs == -torch.inf
    log_u = torch.zeros_like(student_log_probs).masked_fill(absent, -torch.inf)
    log_v = log_u
    for _ in range(iterations):
        log_v = teacher_log_probs - log_matmul(log_u, kernel)
        log_u = student_log_probs - log_matmul(log_v, kernel.T)
    # The last u is p / (K v), so the plan's cost is p (C K v) / (K v), in which v's scale cancels.
    v = torch.exp(log_v - log_v.detach().amax(dim=1, keepdim=True))
    means = (v @ (kernel * costs).T) / (v @ kernel.T)
    return (student_log_probs.exp() * means).sum(dim=1)


class WKDL(Method):
    """L = ce_weight CE + target_weight L_t + decay(epoch) transport_weight W (WKD-L).

    L_t = -p^t_y log p^s_y at temperature 1; W is the entropy-regularised Wasserstein distance
    between the two networks' probabilities among the other classes at temperature T, where
    moving between classes costs 1 - exp(-sharpness (1 - similarity)). The gradient flows through
    all Sinkhorn iterations. After `decay_start` the weight of W falls along a half cosine, to 0 at
    `decay_end`: the schedule's last epoch in the released code, to be set with it here.

    Departures: the published numbers use linear CKA between the teacher's features of two
    classes' training images as similarity; that pairs their images in file order, so it depends
    on the order. Ours is the cosine between two classes' `prototypes`: the teacher's classifier
    weights (an option of the released code), or its mean pooled features (ours, for a teacher
    without a linear classifier). The Sinkhorn iterations have no guard of 1e-8 in their
    denominators and the costs none of 1e-8 either.
    """

    costs: Tensor  # [K, K]

    def __init__(
        self,
        temperature: float = 8.0,
        ce_weight: float = 1.0,
        target_weight: float = 1.0,
        transport_weight: float = 800.0,
        prototypes: Literal["classifier", "class_means"] = "classifier",
        sharpness: float = 1.0,
        regularization: float = 0.05,
        iterations: int = 10,
        decay_start: int = 150,
        decay_end: int = 240,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, sharpness=sharpness, iterations=iterations)
        check_weights(
            ce_weight=ce_weight, target_weight=target_weight, transport_weight=transport_weight
        )
        if not LEAST <= regularization < float("inf"):
            raise ConfigError(f"method.regularization must be {LEAST} or more: {regularization}")
        if not 0 <= decay_start < decay_end:
            raise ConfigError(f"method.decay_start={decay_start} must be below {decay_end}")
        self.temperature, self.ce_weight = temperature, ce_weight
        self.target_weight, self.transport_weight = target_weight, transport_weight
        self.prototypes, self.sharpness = prototypes, sharpness
        self.regularization, self.iterations = regularization, iterations
        self.decay_start, self.decay_end = decay_start, decay_end

    def setup(self, probe: Probe) -> None:
        """Compute the costs between the classes from the teacher's prototypes of them."""
        teacher = probe.teachers[0]
        if self.prototypes == "class_means":
            assert teacher.class_means is not None
            prototypes = teacher.class_means("pooled")
        elif teacher.classifier is not None:
            prototypes = teacher.classifier.weight
        else:
            raise ConfigError("the teacher has no linear classifier: method.prototypes=class_means")
        self.register_buffer("costs", class_costs(prototypes, self.sharpness))

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "target" and "transport", each [B]."""
        (teacher,) = teachers
        labels = batch.labels.unsqueeze(1)
        is_label = F.one_hot(batch.labels, student.logits.shape[1]).bool()
        own, theirs = (
            torch.log_softmax((logits / self.temperature).masked_fill(is_label, -torch.inf), dim=1)
            for logits in (student.logits, teacher.logits)
        )
        cost = transport_cost(own, theirs, self.costs, self.regularization, self.iterations)
        passed = (batch.epoch - self.decay_start) / (self.decay_end - self.decay_start)
        decay = (1 + torch.cos(torch.pi * passed.clamp(0, 1))) / 2
        teacher_target = torch.softmax(teacher.logits, dim=1).gather(1, labels).squeeze(1)
        target = teacher_target * cross_entropy(student.logits, batch.labels)
        return {
            "ce": self.label_term(batch, student),
            "target": self.target_weight * target,
            "transport": decay * self.transport_weight * cost,
        }
