"""Distillation-oriented training: two momenta, one for each half of the loss."""

from typing import Any

import torch
from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.training.divergence import Guard
from kdbench.types import Losses


def align_gradients(sgd: torch.optim.SGD) -> None:
    """Give each gradient its parameter's strides: the fused kernel walks both as flat memory.

    They differ where the layout of a 1x1 convolution is ambiguous.
    """
    for group in sgd.param_groups:
        for param in group["params"]:
            if param.grad is not None and param.grad.stride() != param.stride():
                param.grad = torch.empty_like(param, requires_grad=False).copy_(param.grad)


class DOT:
    """Distillation-oriented SGD: a momentum buffer for each of the two losses.

    v_kd <- (m + gap) v_kd + g_kd;  v_task <- (m - gap) v_task + g_task + weight_decay w;
    w <- w - lr (v_task + v_kd). Weight decay goes with the task's gradient; a parameter that only
    one of the losses reaches has plain momentum m. A buffer starts as its first gradient.
    Zhao et al., "DOT: A Distillation-Oriented Trainer", ICCV 2023, equations 4 to 6.
    """

    BUFFERS = ("momentum_label", "momentum_distillation")

    def __init__(self, sgd: torch.optim.SGD, gap: float, guard: Guard) -> None:
        self.sgd, self.gap, self.guard = sgd, gap, guard
        self.params = [param for group in sgd.param_groups for param in group["params"]]
        self.clear()

    def clear(self) -> None:
        """Before a step: no gradients."""
        self.label: list[Tensor | None] = [None] * len(self.params)
        self.distillation: list[Tensor | None] = [None] * len(self.params)

    def accumulate(self, losses: Losses) -> None:
        """Add the gradients of the two losses to those of the step.

        Raises:
            ConfigError: one of them is missing.
        """
        if losses.label is None or losses.distillation is None:
            raise ConfigError("method=dot needs an inner method with a label and a teacher term")
        of_each = (losses.label, self.label), (losses.distillation, self.distillation)
        for loss, sums in of_each:
            found = torch.autograd.grad(loss, self.params, retain_graph=True, allow_unused=True)
            for i, gradient in enumerate(found):
                if gradient is not None:
                    before = sums[i]
                    sums[i] = gradient.contiguous() if before is None else before + gradient

    def gradients(self) -> list[Tensor]:
        """Those of the label loss, then those of the distillation loss."""
        return [gradient for gradient in (*self.label, *self.distillation) if gradient is not None]

    @torch.no_grad()
    def step(self) -> None:
        """One update from both losses' gradients."""
        gradients = iter(zip(self.params, self.label, self.distillation, strict=True))
        for group in self.sgd.param_groups:
            for _ in group["params"]:
                self._move(group, *next(gradients))

    def _move(
        self, group: dict[str, Any], param: Tensor, label: Tensor | None, other: Tensor | None
    ) -> None:
        decayed = other if label is None else label
        if decayed is None:
            return
        decayed = decayed.add(param, alpha=group["weight_decay"])
        pair = (decayed, other) if label is not None else (None, decayed)
        gap = self.gap if label is not None and other is not None else 0.0
        state = self.sgd.state[param]
        for name, gradient, sign in zip(self.BUFFERS, pair, (-1, 1), strict=True):
            if gradient is None:
                continue
            if name in state:
                moved = (state[name] * (group["momentum"] + sign * gap)).add_(gradient)
            else:
                moved, state[name] = gradient, torch.zeros_like(gradient)
            bad = self.guard.tripped != 0
            state[name].copy_(torch.where(bad, state[name], moved))
            param.copy_(torch.where(bad, param, param - state[name] * group["lr"]))
