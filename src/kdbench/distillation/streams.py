"""SGD with a momentum buffer for each of several gradient streams of one loss."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kdbench.distillation.divergence import Guard
from kdbench.errors import ConfigError
from kdbench.types import Stream


class MomentumStreams:
    """v_i <- (m + gap_i) v_i + g_i for each stream i; w <- w - lr sum_i v_i.

    Weight decay is added to the first stream's gradient, among those that reach the parameter; a
    parameter that only one stream reaches has plain momentum m. A buffer starts as its first
    gradient.
    Zhao et al., "DOT: A Distillation-Oriented Trainer", ICCV 2023, equations 4 to 6, which has two
    streams; DeepKD has three.
    """

    def __init__(self, sgd: torch.optim.SGD, streams: Sequence[Stream], guard: Guard) -> None:
        self.sgd, self.streams, self.guard = sgd, streams, guard
        self.params = [param for group in sgd.param_groups for param in group["params"]]
        self.clear()

    def clear(self) -> None:
        """Clear the gradients, before a step."""
        self.sums: list[list[Tensor | None]] = [[None] * len(self.params) for _ in self.streams]

    def accumulate(
        self,
        losses: Sequence[Tensor | None],
        complete: Callable[[list[Tensor]], None] | None = None,
    ) -> None:
        """Add the gradients of each stream's loss to those of the step.

        Args:
            losses: of each stream.
            complete: takes a stream's gradients before the next stream's are computed.

        Raises:
            ConfigError: a stream has no loss.
        """
        for stream, loss, sums in zip(self.streams, losses, self.sums, strict=True):
            if loss is None:
                raise ConfigError(
                    f"the method has no loss for the gradient stream '{stream.name}': choose a "
                    "method.inner with a label and a teacher term"
                )
            found = torch.autograd.grad(loss, self.params, retain_graph=True, allow_unused=True)
            for i, gradient in enumerate(found):
                if gradient is not None:
                    before = sums[i]
                    sums[i] = gradient.contiguous() if before is None else before + gradient
            if complete is not None:
                complete([gradient for gradient in sums if gradient is not None])

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the first stream's loss, then those of the next."""
        return [gradient for sums in self.sums for gradient in sums if gradient is not None]

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters from all streams' gradients."""
        gradients = iter(zip(self.params, *self.sums, strict=True))
        for group in self.sgd.param_groups:
            for _ in group["params"]:
                param, *of_each = next(gradients)
                self._move(group, param, of_each)

    def _move(self, group: dict[str, Any], param: Tensor, gradients: list[Tensor | None]) -> None:
        reached = [
            (stream, gradient)
            for stream, gradient in zip(self.streams, gradients, strict=True)
            if gradient is not None
        ]
        state = self.sgd.state[param]
        for place, (stream, gradient) in enumerate(reached):
            if place == 0:
                gradient = gradient.add(param, alpha=group["weight_decay"])
            name, gap = f"momentum_{stream.name}", stream.gap if len(reached) > 1 else 0.0
            if name in state:
                moved = (state[name] * (group["momentum"] + gap)).add_(gradient)
            else:
                moved, state[name] = gradient, torch.zeros_like(gradient)
            bad = self.guard.tripped != 0
            state[name].copy_(torch.where(bad, state[name], moved))
            param.copy_(torch.where(bad, param, param - state[name] * group["lr"]))
