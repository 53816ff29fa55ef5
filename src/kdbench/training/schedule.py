"""The schedule of a recipe, and the optimizer that follows it."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdbench.errors import ConfigError
from kdbench.methods.base import Method
from kdbench.system.precision import Precision, TablePrecision
from kdbench.training.divergence import Guard


@dataclass(frozen=True)
class Schedule:
    """SGD with step decay: the recipe of RepDistiller and mdistiller, in numbers.

    Raises:
        ConfigError: a setting that cannot be trained with.
    """

    epochs: int
    batch_size: int
    lr: float
    milestones: list[int]  # epochs after which the learning rate drops
    gamma: float = 0.1  # factor of each drop
    momentum: float = 0.9
    weight_decay: float = 5e-4  # on every parameter: batch norm, biases and the method's own
    precision: Precision = "fp32"  # of the networks' forward passes; losses and weights are fp32
    table_precision: TablePrecision = "fp32"  # what a teacher's table stores
    warmup_epochs: int = 0  # in whose steps the learning rate rises linearly, to `lr` in the last
    micro_batches: int = 1  # that a batch is cut into, one after the other or on several ranks

    def __post_init__(self) -> None:
        """Check every setting."""
        check_schedule(self, "epochs", "batch_size", "micro_batches")

    def lr_factor(self, epoch: int) -> float:
        """What the learning rate is multiplied by in `epoch` (from 1).

        gamma ^ #{milestones m : epoch > m}, the rule of RepDistiller and mdistiller: a milestone of
        150 takes effect from epoch 151.
        """
        return self.gamma ** sum(epoch > milestone for milestone in self.milestones)

    def warm_up_factor(self, step: int, steps_per_epoch: int) -> float:
        """What it is multiplied by besides, in `step` (from 0, over all epochs).

        (step + 1) / (steps of the warm-up), the rule of Tf-KD and DR-KD; 1 after the warm-up.
        """
        warm_up = self.warmup_epochs * steps_per_epoch
        return (step + 1) / warm_up if step < warm_up else 1.0


def check_schedule(schedule: Any, length: str, *counts: str) -> None:
    """Check what all schedules have: counts, numbers of SGD, a warm-up and milestones.

    Args:
        schedule: with `lr`, `gamma`, `momentum`, `weight_decay`, `milestones` and what is named.
        length: "epochs" or "steps", what it is counted in.
        counts: further keys that are 1 or more.

    Raises:
        ConfigError: a setting that cannot be trained with.
    """
    for key in (length, *counts):
        if getattr(schedule, key) < 1:
            raise ConfigError(f"schedule.{key} must be 1 or more, not {getattr(schedule, key)}")
    total, warmup = getattr(schedule, length), getattr(schedule, f"warmup_{length}")
    if not 0 <= warmup <= total:
        raise ConfigError(
            f"schedule.warmup_{length} must be from 0 to schedule.{length}={total}, not {warmup}"
        )
    for key in ("lr", "gamma"):
        if not 0 < getattr(schedule, key) < float("inf"):
            raise ConfigError(f"schedule.{key} must be above 0, not {getattr(schedule, key)}")
    for key in ("momentum", "weight_decay"):
        if not 0 <= getattr(schedule, key) < float("inf"):
            raise ConfigError(f"schedule.{key} must be 0 or more, not {getattr(schedule, key)}")
    milestones = schedule.milestones
    if any(later <= earlier for earlier, later in pairwise([0, *milestones])):
        raise ConfigError(f"schedule.milestones must rise from 1, not {milestones}")
    if milestones and milestones[-1] >= total:
        raise ConfigError(
            f"schedule.milestones={milestones} reach beyond the last drop that could have an "
            f"effect: with {total} {length} each must be below {total}"
        )


class Losses(NamedTuple):
    """A step's loss in its two parts, each [] or None where a recipe has no such term."""

    label: Tensor | None
    distillation: Tensor | None

    def total(self) -> Tensor:
        """The label loss plus the distillation loss."""
        parts = [part for part in self if part is not None]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def times(self, share: float) -> "Losses":
        """Both parts times a number."""
        return Losses(*(None if part is None else part * share for part in self))


class Optimizer:
    """SGD without Nesterov over a student's and its method's parameters.

    A method's parameter groups may carry their own `lr` and `weight_decay`; the schedule's factor
    applies to them too. A method with a `momentum_gap` is trained by DOT's rule.

    On a GPU the update is one fused kernel and the learning rates are tensors there, so that a
    recorded step reads the one of its epoch. On the CPU it is torch's plain loop: the fused kernel
    takes 0.4 (resnet8) to 0.9 (resnet8x4) of its time, which is below 0.4% of a step, and rounds
    otherwise.

    `guard` sees every step before its update; from the first loss or gradient that is not finite
    on, nothing moves.
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
        gap = method.momentum_gap
        self.dot = DOT(self.sgd, gap, self.guard) if gap > 0 else None
        self._base_lrs = [group["lr"] for group in self.sgd.param_groups]
        self._factor = 1.0  # of the running epoch
        self.lr = schedule.lr  # of the student, in the running epoch; in a warm-up, step
        if device.type == "cuda":
            for group in self.sgd.param_groups:
                group["lr"] = torch.tensor(group["lr"], device=device)
            # The fused kernel looks for this attribute, and moves nothing where it is 1.
            self.sgd.found_inf = self.guard.tripped  # type: ignore[attr-defined]  # not declared

    def start_epoch(self, epoch: int) -> None:
        """Set every group's learning rate for `epoch` (from 1)."""
        self._factor = self.schedule.lr_factor(epoch)
        self.set_rates(self._factor)

    def warm_up(self, step: int, steps_per_epoch: int) -> None:
        """Set them for a step of the running epoch (from 0, over all), if it is of the warm-up."""
        if step < self.schedule.warmup_epochs * steps_per_epoch:
            self.set_rates(self._factor * self.schedule.warm_up_factor(step, steps_per_epoch))

    def set_rates(self, factor: float) -> None:
        """Set every group's learning rate to its own times `factor`."""
        for group, base in zip(self.sgd.param_groups, self._base_lrs, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(base * factor)  # in place: a recorded step reads this very tensor
            else:
                group["lr"] = base * factor
        self.lr = self._base_lrs[0] * factor

    def update(self, losses: Losses) -> None:
        """One step on a step's losses."""
        self.clear()
        self.apply(self.accumulate(losses))

    def clear(self) -> None:
        """Before a step: no gradients."""
        self.sgd.zero_grad(set_to_none=True)
        if self.dot is not None:
            self.dot.clear()

    def accumulate(self, losses: Losses) -> Tensor:
        """Add the gradients of the losses to those of the step; returns their sum []."""
        total = losses.total()
        if self.dot is not None:
            self.dot.accumulate(losses)
        else:
            total.backward()
        return total.detach()

    def gradients(self) -> list[Tensor]:
        """Those of the step so far; of DOT both losses'."""
        if self.dot is not None:
            return self.dot.gradients()
        params = (param for group in self.sgd.param_groups for param in group["params"])
        return [param.grad for param in params if param.grad is not None]

    def apply(self, loss: Tensor) -> None:
        """The update by the step's gradients; `loss` [] is the step's."""
        self.guard.watch(loss, self.gradients())
        if self.dot is not None:
            self.dot.step()
            return
        if self.sgd.defaults["fused"]:
            align_gradients(self.sgd)
        elif self.guard.tripped:  # in the CPU's own memory: there is nothing to wait for
            return
        self.sgd.step()


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
