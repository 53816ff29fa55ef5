"""KD as strong as another recipe: a control."""

import torch
from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.losses import kd_loss, total
from kdbench.methods.base import Method, Wrapper, check_positive
from kdbench.types import Batch, Output


class MatchedKD(Wrapper):
    """The inner recipe's label term and plain KD, at the strength that the inner recipe has.

    L = CE as inside + w T^2 KL(p^t(T) || p^s(T)), w = sum_n |d l_n / d z| / sum_n |d KL_n / d z|
    over the steps n of the first epoch: l is the inner recipe's distillation, both losses are the
    batch's means, z the student's logits of the step, |.| the Frobenius norm. In that epoch w is
    `kd_weight`, from the second on it is what was measured. The inner recipe is told that the epoch
    is `inner_epoch`, so that a warm-up of its own is over.

    A gain of the inner recipe over this one is not one of strength. Departures: there is no paper
    to depart from.
    """

    reads_epoch = True
    inner_norm: Tensor  # [], summed over the first epoch
    kd_norm: Tensor  # []

    def __init__(
        self,
        inner: Method,
        temperature: float = 4.0,
        kd_weight: float = 0.9,
        inner_epoch: int = 20,
    ) -> None:
        super().__init__(inner)
        check_positive(temperature=temperature, kd_weight=kd_weight, inner_epoch=inner_epoch)
        if inner.taps or inner.views > 1 or inner.num_teachers != 1:
            raise ConfigError(
                "method.inner must read the logits of one teacher on one view: its gradient there "
                "is what is measured"
            )
        self.batch_terms, self.streams = (), ()
        self.temperature, self.kd_weight = temperature, kd_weight
        self.inner_epoch = inner_epoch
        self.register_buffer("inner_norm", torch.zeros(()))
        self.register_buffer("kd_norm", torch.zeros(()))

    def weight(self, batch: Batch) -> Tensor:
        """KD's weight in this step, []."""
        known = (batch.epoch > 1) & (self.kd_norm > 0)
        return torch.where(known, self.inner_norm / self.kd_norm.clamp(min=1e-30), self.kd_weight)

    def measure(self, batch: Batch, student: Output, teachers: tuple[Output, ...]) -> None:
        """Add up the norms of both gradients in the first epoch."""
        logits = student.logits.detach()
        told = batch._replace(epoch=torch.full_like(batch.epoch, self.inner_epoch))

        def distillation(logits: Tensor) -> Tensor:
            terms = self.inner(told, Output(logits, {}), teachers)
            return total(term.mean() for name, term in terms.items() if name != "ce")

        def kd(logits: Tensor) -> Tensor:
            return kd_loss(logits, teachers[0].logits, self.temperature).mean()

        first = (batch.epoch <= 1).to(self.kd_norm.dtype)
        for norm, loss in ((self.inner_norm, distillation), (self.kd_norm, kd)):
            gradient = torch.func.grad(loss)(logits)
            norm.add_(first * gradient.norm().to(norm.dtype))

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" and "kd", each [B]."""
        self.measure(batch, student, teachers)
        kd = kd_loss(student.logits, teachers[0].logits, self.temperature)
        return {"ce": self.label_term(batch, student), "kd": self.weight(batch) * kd}

    def observe(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """KD's weight."""
        return {"weight": self.weight(batch)}
