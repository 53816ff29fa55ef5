"""Scales of a student's logits: how one is parametrised and steered, and the best one of a sample.

With p = softmax(v / T) of the teacher and q(e) = softmax(e z / T) of the student, KL(p || q(e)) is
convex in the scale e > 0: its derivative is (E_q[z] - E_p[z]) / T, its second Var_q[z] / T^2.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.losses import entropy

Parametrisation = Literal["scale", "exp", "softplus", "inv_temp"]
Factor = Literal["t2", "t_ts", "ts2", "one"]


def scale_of(theta: Tensor, parametrisation: Parametrisation, temperature: float) -> Tensor:
    """The scale e > 0 that a parameter stands for. Shapes: any -> the same.

    scale: e = theta; exp: e = exp(theta); softplus: e = log(1 + exp(theta)); inv_temp:
    e = T / theta, where theta is the student's own temperature.
    """
    if parametrisation == "exp":
        return theta.exp()
    if parametrisation == "softplus":
        return F.softplus(theta)
    return temperature / theta if parametrisation == "inv_temp" else theta


def theta_of(scale: float, parametrisation: Parametrisation, temperature: float) -> float:
    """The parameter that stands for the scale e > 0; the inverse of `scale_of`."""
    if parametrisation == "exp":
        return math.log(scale)
    if parametrisation == "softplus":
        return scale + math.log(-math.expm1(-scale))
    return temperature / scale if parametrisation == "inv_temp" else scale


def steer(theta: Tensor, factor: float) -> Tensor:
    """The same value, with its gradient multiplied by `factor`.

    Under SGD without weight decay that is a learning rate `factor` times as high; a negative factor
    ascends the loss. Shapes: any -> the same.
    """
    return theta.detach() + factor * (theta - theta.detach())


@torch.no_grad()
def optimal_scale(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    lowest: float,
    highest: float,
    steps: int = 24,
) -> Tensor:
    """The scale e in [lowest, highest] with the least KL(p || q(e)) of each sample, a constant.

    Newton's method inside a bracket: a step that would leave it is replaced by the bracket's
    geometric middle, so that flat tails and students that rank the classes against the teacher
    (whose best scale is `lowest`) do no harm. Shapes: logits [B, K] -> [B, 1].
    """
    probs = torch.softmax(teacher_logits / temperature, dim=1)
    wanted = (probs * student_logits).sum(dim=1, keepdim=True)  # E_p[z]
    low, high = torch.full_like(wanted, lowest), torch.full_like(wanted, highest)
    scale = (low * high).sqrt()
    for _ in range(steps):
        probs = torch.softmax(scale * student_logits / temperature, dim=1)
        mean = (probs * student_logits).sum(dim=1, keepdim=True)  # E_q[z]
        variance = (probs * (student_logits - mean).square()).sum(dim=1, keepdim=True)
        too_low = mean < wanted
        low, high = torch.where(too_low, scale, low), torch.where(too_low, high, scale)
        newton = scale - temperature * (mean - wanted) / variance
        within = (newton >= low) & (newton <= high)  # false where a constant row gives 0 / 0
        scale = torch.where(within, newton, (low * high).sqrt())
    return scale


def factor_of(
    scale: Tensor, temperature: float, factor: Factor, divide_by_e: bool
) -> Tensor | float:
    """Return the KL's factor at scale e: T^2 (t2), T T_s (t_ts), T_s^2 (ts2) or 1, T_s = T / e.

    `divide_by_e` divides it by e as a constant. Shapes: [], [K] or [B, 1] -> a number, [1] or [B].
    """
    e, t2 = scale.reshape(-1), temperature**2
    by: dict[str, Tensor | float] = {"t2": t2, "t_ts": t2 / e, "ts2": t2 / e**2, "one": 1.0}
    return by[factor] / e.detach() if divide_by_e else by[factor]


@torch.no_grad()
def scale_curves(
    scale: Tensor, student_logits: Tensor, teacher_logits: Tensor, v: Tensor, temperature: float
) -> dict[str, Tensor]:
    """Numbers worth a curve of a scale e of the student's logits z against the target's v.

    e; entropies of p, of q and, at temperature 1, of softmax(z); the logits' deviations. Shapes:
    scale [], [K] or [B, 1], logits [B, K] -> each [] or [B].
    """
    return {
        "e": scale.mean(),
        "entropy_teacher": entropy(v, temperature),
        "entropy_student": entropy(scale * student_logits, temperature),
        "entropy_student_t1": entropy(student_logits),
        "sd_student": student_logits.std(dim=1),
        "sd_teacher": teacher_logits.std(dim=1),
    }
