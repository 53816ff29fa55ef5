"""The optimizer of recipes whose loss has gradient streams, for people with a loop of their own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdbench.distillation.divergence import Guard
from kdbench.distillation.streams import MomentumStreams
from kdbench.errors import KdbenchError
from kdbench.types import Losses, Stream


class StreamSGD(torch.optim.SGD):
    """SGD with a momentum buffer for each gradient stream, see `MomentumStreams`.

    `step` differentiates the losses of the distiller's last forward pass by itself, once a stream:
    leave `loss.backward()` out.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        streams: tuple[Stream, ...],
        take_losses: Callable[[], Losses],
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        super().__init__(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.take_losses = take_losses
        device = self.param_groups[0]["params"][0].device
        self.guard = Guard(device)
        self.streams = MomentumStreams(self, streams, self.guard)
        self.tripped = torch.zeros((), pin_memory=device.type == "cuda")  # the guard's, seen late

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # returns no loss
        """One update by the losses of the last forward pass; nothing waits for the device.

        Raises:
            ConfigError: there was no forward pass.
            KdbenchError: a loss or a gradient was not finite, in this step or, on a GPU, in one
                before; no parameter has moved since.
        """
        losses = self.take_losses()
        self.streams.clear()
        self.streams.accumulate(losses.streams)
        total: Tensor = losses.total().detach()
        self.guard.watch(total, self.streams.gradients())
        self.streams.step()
        self.tripped.copy_(self.guard.tripped, non_blocking=True)
        if self.tripped:
            raise KdbenchError("a loss or a gradient is not finite: lower the learning rate")
