"""Adaptive ensemble distillation in gradient space (Du et al., NeurIPS 2020)."""

import itertools

import torch
from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.losses import kd_losses
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output, Probe

RIDGE = 1e-12  # of the Gram matrix with trace 1: makes equal teachers' weights unique
SLACK = 1e-9  # how far a solution may leave the bounds by rounding
MOST_TEACHERS = 8  # 3^T active sets


def active_sets(teachers: int) -> Tensor:
    """Every way to put each weight at 0 (0), at the cap (1) or free (2): [3^T, T]."""
    return torch.tensor(list(itertools.product(range(3), repeat=teachers)))


def teacher_weights(gradients: Tensor, cap: float, sets: Tensor) -> Tensor:
    """argmin ||sum_t w_t g_t||^2 with sum w = 1 and 0 <= w_t <= cap, in float64.

    Shapes: gradients [T, K], sets of `active_sets` [S, T] -> [T]. The solution of a convex
    quadratic programme solves the equations of its active set, so the best feasible solution among
    those of all sets is exact. A set's weights are base - level * slope, its sum fixes the level.
    """
    gradients = gradients.double()
    gram = gradients @ gradients.T
    gram = gram / gram.trace().clamp(min=torch.finfo(gram.dtype).tiny)  # the solution is the same
    gram = gram + RIDGE * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    free = (sets == 2).to(gram.dtype)  # [S, T]
    fixed = cap * (sets == 1).to(gram.dtype)
    matrix = free.unsqueeze(2) * gram * free.unsqueeze(1) + torch.diag_embed(1 - free)
    right = torch.stack([fixed - free * (fixed @ gram), free], dim=2)  # [S, T, 2]
    base, slope = torch.linalg.solve_ex(matrix, right).result.unbind(dim=2)
    total = slope.sum(dim=1, keepdim=True)
    has_free = total > 0
    level = (base.sum(dim=1, keepdim=True) - 1) / torch.where(has_free, total, 1.0)
    weights = base - torch.where(has_free, level, 0.0) * slope
    inside = ((weights >= -SLACK) & (weights <= cap + SLACK)).all(dim=1)
    feasible = inside & ((weights.sum(dim=1) - 1).abs() <= SLACK)
    objective = ((weights @ gram) * weights).sum(dim=1)
    best = torch.where(feasible, objective, torch.inf).argmin(keepdim=True)
    return weights.index_select(0, best).squeeze(0).clamp(0, cap)


class AEKD(Method):
    """L = ce_weight CE + kd_weight sum_t w_t mean_n T^2 KL(p^t_n || p^s_n).

    w = argmin ||sum_t w_t g_t||^2 over the simplex with w_t <= tolerance, g_t the mean over the
    batch of the gradient of teacher t's loss at the student's logits, T (p^s - p^t) / B. The
    weights are shared by the batch and constant in the gradient. A tolerance of 1 / T or less is
    `aver`, of 1 or more the plain minimum-norm point.

    Departures: the released code solves the programme on the host, as a one-class SVM to 1e-6 (a
    degenerate one at a tolerance of 1 / T); here all active sets are solved at once, in closed
    form. Its normalised gradients (off by default there) and its version on the hint layer are left
    out. One teacher is KD.
    """

    soft_labels = True
    num_teachers = None
    sets: Tensor  # [S, T]

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        tolerance: float = 0.6,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, tolerance=tolerance)
        check_weights(ce_weight=ce_weight, kd_weight=kd_weight)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.tolerance = tolerance

    def setup(self, probe: Probe) -> None:
        """List the active sets."""
        count = len(probe.teachers)
        if count > MOST_TEACHERS:
            raise ConfigError(f"aekd takes at most {MOST_TEACHERS} teachers, not {count}")
        self.cap = min(max(self.tolerance, 1 / count), 1.0)
        self.register_buffer("sets", active_sets(count))

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "kd" []: the weights couple the batch."""
        logits = torch.stack([teacher.logits for teacher in teachers])
        losses = kd_losses(student.logits, logits, self.temperature).mean(dim=1)  # [T]
        own = torch.softmax(student.logits.detach() / self.temperature, dim=1)
        others = torch.softmax(logits / self.temperature, dim=2)
        gradients = self.temperature * (own - others).mean(dim=1) / len(own)  # [T, K]
        weights = teacher_weights(gradients, self.cap, self.sets).to(losses.dtype)
        loss = (weights * losses).sum()
        return {"ce": self.label_term(batch, student), "kd": self.kd_weight * loss}
