"""BKL, a balanced KL divergence (CKeyZhang/BKL)."""

import torch
from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output


def bkl_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    alpha: float,
    beta: float,
    eps: float,
) -> Tensor:
    """T^2 sum_k [a p^t log(p^t / p^s) + (1 - a) p^s log(p^s / p^t)] / (r_k + eps), at T.

    r_k = (p^s_k^2 + p^t_k^2)^((1 - beta) / 2), through which the gradient runs too. Shapes: logits
    [B, K] -> [B]. r comes from log-probabilities: a power of 0 has no derivative.
    """
    own, theirs = (
        torch.log_softmax(logits / temperature, dim=1)
        for logits in (student_logits, teacher_logits)
    )
    difference = theirs - own
    weighed = (alpha * theirs.exp() - (1 - alpha) * own.exp()) * difference
    radius = torch.exp((1 - beta) / 2 * torch.logaddexp(2 * own, 2 * theirs))
    return temperature**2 * (weighed / (radius + eps)).sum(dim=1)


class BKL(Method):
    """L = ce_weight CE + bkl_weight BKL, KL and its reverse, each class by its own weight.

    See `bkl_loss`: alpha is the share of KL, and beta = 1 leaves the classes unweighted; the
    smaller it is, the more the classes count that both networks find unlikely.

    Departures: the released class reads alpha and beta without ever setting them, so what its
    authors trained with is not known.
    """

    soft_labels = True

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 0.1,
        bkl_weight: float = 0.9,
        alpha: float = 0.5,
        beta: float = 0.5,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, eps=eps)
        check_weights(ce_weight=ce_weight, bkl_weight=bkl_weight)
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not 0 <= value <= 1:
                raise ConfigError(f"method.{name} must be from 0 to 1, not {value}")
        self.temperature = temperature
        self.ce_weight, self.bkl_weight = ce_weight, bkl_weight
        self.alpha, self.beta, self.eps = alpha, beta, eps

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" and "bkl", each [B]."""
        (teacher,) = teachers
        settings = self.temperature, self.alpha, self.beta, self.eps
        divergence = bkl_loss(student.logits, teacher.logits, *settings)
        return {"ce": self.label_term(batch, student), "bkl": self.bkl_weight * divergence}
