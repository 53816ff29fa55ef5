"""The optimizer of a schedule over a student's and its method's parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.distillation.divergence import Guard
from kdbench.distillation.streams import MomentumStreams
from kdbench.methods.base import Method
from kdbench.training.light_sgd import LightSGD
from kdbench.training.optimizer_state import Plain, restore_state, state_of
from kdbench.training.schedule import Schedule
from kdbench.types import Losses

SCALE = "scale"  # of fp16, in an optimizer's state


class Optimizer:
    """SGD, or the timm optimizer of a schedule, over a student's and its method's parameters.

    A method's parameter groups may carry their own `lr` and `weight_decay`; the schedule's factor
    applies to them too. A method with gradient `streams` has a momentum buffer for each.

    On a GPU the update of SGD, Adam and AdamW is one fused kernel and the learning rates are
    tensors on the device, so that a recorded step reads the rate of its epoch; other optimizers
    keep counts on the host, and so their steps are not `recordable`. On the CPU, Adam and AdamW are
    fused as well; SGD is torch's plain loop, of which its fused kernel takes 0.4 (resnet8) to 0.9
    (resnet8x4) of the time, which saves less than 0.4% of a step, and it rounds differently.

    `guard` checks every step before its update; from the first loss or gradient that is not finite
    on, no parameter moves (on a GPU: of those optimizers that are fused; a run stops at the next
    read, and saves nothing from there on).

    Raises:
        ConfigError: the optimizer cannot be made, or not for this network.
    """

    def __init__(self, schedule: Schedule, student: nn.Module, method: Method) -> None:
        self.schedule, self.student = schedule, student
        groups = [*student_groups(schedule, student), *method.param_groups()]
        device = groups[0]["params"][0].device
        self.inner = made(schedule, groups)
        self.guard = Guard(device)
        streams = method.streams
        self.streams: MomentumStreams | None = None
        if streams:
            assert isinstance(self.inner, torch.optim.SGD)
            self.streams = MomentumStreams(self.inner, streams, self.guard)
        self._base_lrs = [group["lr"] for group in self.inner.param_groups]
        self._rates: Any = None  # timm's, once the steps of an epoch are known
        self.lr = schedule.lr  # of the student, in the running epoch or step
        self._step = 0
        self.ema = average_of(schedule, student)
        # Gradients of fp16 are computed at a scale that moves with what overflows.
        half = schedule.precision == "fp16"
        self.scaler = torch.amp.GradScaler(device.type) if half else None
        self._first = [dict(group) for group in self.inner.param_groups]
        self.fused = bool(self.inner.defaults.get("fused"))
        self.recordable = self.scaler is None and (self.fused or schedule.optimizer == "sgd")
        if self.fused:
            if device.type == "cuda":
                for group in self.inner.param_groups:
                    group["lr"] = torch.tensor(group["lr"], device=device)
            # The fused kernel reads this attribute, and moves nothing where it is 1.
            self.inner.found_inf = self.guard.tripped  # type: ignore[attr-defined]  # not declared

    def start_epoch(self, epoch: int) -> None:
        """Set every group's learning rate for `epoch` (from 1), where it follows from that."""
        if self.schedule.drops_alone:
            self.set_rates(self.schedule.lr_factor(epoch))

    def start_step(self, step: int, steps_per_epoch: int) -> None:
        """Set the learning rates of a step (from 0, over all epochs), where they follow from it."""
        schedule, self._step = self.schedule, step
        rising = schedule.warmup_lr is None and step < schedule.warmup_epochs * steps_per_epoch
        if schedule.drops_alone and not rising:
            return
        epoch = step // steps_per_epoch + 1
        factor = schedule.lr_factor(epoch)
        if rising:
            factor *= schedule.warm_up_factor(step, steps_per_epoch)
        if not schedule.drops_alone:
            factor *= self._timm_rate(epoch, step, steps_per_epoch) / schedule.lr
        self.set_rates(factor)

    def _timm_rate(self, epoch: int, step: int, steps_per_epoch: int) -> float:
        if self._rates is None:
            from kdbench.training.timm_optimizers import TimmRates  # timm takes a second

            self._rates = TimmRates(self.schedule, steps_per_epoch)
        rate: float = self._rates.at(epoch, step)
        return rate

    def set_rates(self, factor: float) -> None:
        """Set every group's learning rate to its own times `factor`."""
        for group, base in zip(self.inner.param_groups, self._base_lrs, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(base * factor)  # in place: a recorded step reads this tensor
            else:
                group["lr"] = base * factor
        self.lr = self.schedule.lr * factor

    def update(self, losses: Losses) -> None:
        """Take one step on these losses."""
        self.clear()
        self.apply(self.accumulate(losses))

    def clear(self) -> None:
        """Clear the gradients, before a step."""
        self.inner.zero_grad(set_to_none=True)
        if self.streams is not None:
            self.streams.clear()

    def accumulate(
        self, losses: Losses, complete: Callable[[list[Tensor]], None] | None = None
    ) -> Tensor:
        """Add the gradients of the losses to those of the step; return the losses' sum [].

        `complete` is told of streams alone; see `MomentumStreams.accumulate`.
        """
        total = losses.total()
        if self.streams is not None:
            self.streams.accumulate(losses.streams, complete)
        else:
            (total if self.scaler is None else self.scaler.scale(total)).backward()
        return total.detach()

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the step so far; with streams, those of each stream."""
        if self.streams is not None:
            return self.streams.gradients()
        return [param.grad for param in self.params() if param.grad is not None]

    def params(self) -> list[nn.Parameter]:
        """Return the parameters of all groups."""
        return [param for group in self.inner.param_groups for param in group["params"]]

    def apply(self, loss: Tensor) -> None:
        """Update from the step's gradients; `loss` [] is the step's."""
        # Where gradients of fp16 overflow, the step is left out and the scale halved.
        self.guard.watch(loss, self.gradients() if self.scaler is None else [])
        if self.streams is not None:
            self.streams.step()
        elif self.fused or self.guard.tripped.is_cuda or not self.guard.tripped:  # on a CPU at once
            self.step()
        if self.ema is not None:  # the first step's is a copy; a recorded step is a later one
            self.ema.update(self.student, step=self._step + 1)

    def step(self) -> None:
        """Move the parameters by the gradients as they are."""
        if self.fused:
            align_gradients(self.inner)
        if self.scaler is not None:
            self.scaler.unscale_(self.inner)
        self.clip()
        if self.scaler is None:
            self.inner.step()
        else:
            self.scaler.step(self.inner)
            self.scaler.update()

    def clip(self) -> None:
        """Limit the step's gradients, where the schedule says so."""
        if self.schedule.clip_grad is not None:
            from timm.utils import dispatch_clip_grad  # timm takes a second

            dispatch_clip_grad(self.params(), self.schedule.clip_grad, self.schedule.clip_mode)

    def state(self) -> tuple[dict[str, Tensor], Plain]:
        """Return all on which the next step depends; see `optimizer_state.state_of`."""
        tensors, plain = state_of(self.inner, self._first)
        if self.scaler is not None:
            scale = self.scaler.state_dict()
            plain |= {f"{SCALE}/{key}": value for key, value in scale.items()}
        return tensors, plain

    def restore(self, tensors: dict[str, Tensor], plain: Plain) -> None:
        """Take up what `state` returned; see `optimizer_state.restore_state`."""
        if self.scaler is not None:
            keys = [key for key in plain if key.startswith(f"{SCALE}/")]
            self.scaler.load_state_dict({key.partition("/")[2]: plain[key] for key in keys})
            plain = {key: value for key, value in plain.items() if key not in keys}
        restore_state(self.inner, tensors, plain)


def average_of(schedule: Schedule, student: nn.Module) -> Any:
    """Return timm's moving average of a student's weights and statistics; None without one."""
    if schedule.ema_decay is None:
        return None
    from timm.utils import ModelEmaV3  # timm takes a second

    return ModelEmaV3(student, decay=schedule.ema_decay)


def student_groups(schedule: Schedule, student: nn.Module) -> list[dict[str, Any]]:
    """Return a student's groups of parameters: one, unless weight decay or layers tell them apart.

    Raises:
        ConfigError: `layer_decay` is set, and nothing says what the network's layers are.
    """
    if not schedule.filter_bias_and_bn and schedule.layer_decay is None:
        return [{"params": list(student.parameters())}]
    from kdbench.training.timm_optimizers import groups_of  # timm takes a second

    return groups_of(schedule, student)


def made(schedule: Schedule, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Make the optimizer that a schedule names.

    Raises:
        ConfigError: it cannot be made.
    """
    if schedule.optimizer == "sgd":
        return LightSGD(
            groups,
            lr=schedule.lr,
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
            nesterov=schedule.nesterov,
            fused=groups[0]["params"][0].device.type == "cuda" or None,
        )
    from kdbench.training.timm_optimizers import make_optimizer  # timm takes a second

    return make_optimizer(schedule, groups)


def align_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Give each gradient its parameter's strides, since the fused kernel reads both as flat memory.

    The strides differ where the layout of a 1x1 convolution is ambiguous.
    """
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None and param.grad.stride() != param.stride():
                param.grad = torch.empty_like(param, requires_grad=False).copy_(param.grad)
