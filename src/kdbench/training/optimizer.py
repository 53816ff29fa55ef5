"""SGD over a student's and its method's parameters."""

import torch
from torch import Tensor, nn

from kdbench.distillation.divergence import Guard
from kdbench.distillation.streams import MomentumStreams
from kdbench.methods.base import Method
from kdbench.training.schedule import Schedule
from kdbench.types import Losses


class Optimizer:
    """SGD without Nesterov over a student's and its method's parameters.

    A method's parameter groups may carry their own `lr` and `weight_decay`; the schedule's factor
    applies to them too. A method with gradient `streams` has a momentum buffer for each.

    On a GPU the update is one fused kernel and the learning rates are tensors on the device, so
    that a recorded step reads the rate of its epoch. On the CPU the update is torch's plain loop:
    the fused kernel takes 0.4 (resnet8) to 0.9 (resnet8x4) of its time, which saves less than 0.4%
    of a step, and it rounds differently.

    `guard` checks every step before its update; from the first loss or gradient that is not finite
    on, no parameter moves.
    """

    def __init__(self, schedule: Schedule, student: nn.Module, method: Method) -> None:
        self.schedule = schedule
        groups = [{"params": list(student.parameters())}, *method.param_groups()]
        device = groups[0]["params"][0].device
        self.sgd = torch.optim.SGD(
            groups,
            lr=schedule.lr,
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
            fused=device.type == "cuda" or None,
        )
        self.guard = Guard(device)
        streams = method.streams
        self.streams = MomentumStreams(self.sgd, streams, self.guard) if streams else None
        self._base_lrs = [group["lr"] for group in self.sgd.param_groups]
        self._factor = 1.0  # of the running epoch
        self.lr = schedule.lr  # of the student, in the running epoch or step of a warm-up
        if device.type == "cuda":
            for group in self.sgd.param_groups:
                group["lr"] = torch.tensor(group["lr"], device=device)
            # The fused kernel reads this attribute, and moves nothing where it is 1.
            self.sgd.found_inf = self.guard.tripped  # type: ignore[attr-defined]  # not declared

    def start_epoch(self, epoch: int) -> None:
        """Set every group's learning rate for `epoch` (from 1)."""
        self._factor = self.schedule.lr_factor(epoch)
        self.set_rates(self._factor)

    def warm_up(self, step: int, steps_per_epoch: int) -> None:
        """Set the learning rates of a step (from 0, over all epochs) of the warm-up, if in it."""
        if step < self.schedule.warmup_epochs * steps_per_epoch:
            self.set_rates(self._factor * self.schedule.warm_up_factor(step, steps_per_epoch))

    def set_rates(self, factor: float) -> None:
        """Set every group's learning rate to its own times `factor`."""
        for group, base in zip(self.sgd.param_groups, self._base_lrs, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(base * factor)  # in place: a recorded step reads this tensor
            else:
                group["lr"] = base * factor
        self.lr = self._base_lrs[0] * factor

    def update(self, losses: Losses) -> None:
        """Take one step on these losses."""
        self.clear()
        self.apply(self.accumulate(losses))

    def clear(self) -> None:
        """Clear the gradients, before a step."""
        self.sgd.zero_grad(set_to_none=True)
        if self.streams is not None:
            self.streams.clear()

    def accumulate(self, losses: Losses) -> Tensor:
        """Add the gradients of the losses to those of the step; return the losses' sum []."""
        total = losses.total()
        if self.streams is not None:
            self.streams.accumulate(losses.streams)
        else:
            total.backward()
        return total.detach()

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the step so far; with streams, those of each stream."""
        if self.streams is not None:
            return self.streams.gradients()
        params = (param for group in self.sgd.param_groups for param in group["params"])
        return [param.grad for param in params if param.grad is not None]

    def apply(self, loss: Tensor) -> None:
        """Update from the step's gradients; `loss` [] is the step's."""
        self.guard.watch(loss, self.gradients())
        if self.streams is not None:
            self.streams.step()
            return
        if self.sgd.defaults["fused"]:
            align_gradients(self.sgd)
        elif self.guard.tripped:  # in CPU memory, so there is nothing to wait for
            return
        self.sgd.step()


def align_gradients(sgd: torch.optim.SGD) -> None:
    """Give each gradient its parameter's strides, since the fused kernel reads both as flat memory.

    The strides differ where the layout of a 1x1 convolution is ambiguous.
    """
    for group in sgd.param_groups:
        for param in group["params"]:
            if param.grad is not None and param.grad.stride() != param.stride():
                param.grad = torch.empty_like(param, requires_grad=False).copy_(param.grad)
