"""timm's optimizers, groups of parameters and learning rates, by the names of a schedule."""

import inspect
from collections.abc import Mapping
from typing import Any

import timm.optim
import torch
from timm.scheduler import create_scheduler_v2
from torch import nn

from kdbench.errors import ConfigError, first_line, nearest
from kdbench.training.schedule import Schedule

# Arguments that have keys of their own in a schedule, and so are none of `optimizer_settings`.
KEYS_OF_OWN = ("params", "lr", "momentum", "weight_decay", "nesterov")
# Arguments that say how an update is computed and not what it is: these follow from the device.
OF_THE_DEVICE = ("foreach", "fused", "capturable", "differentiable", "verbose")
SHAPES = {"cosine": "cosine", "linear": "poly", "step": "step"}  # timm's names of decays
Group = dict[str, Any]


def check_timm_optimizer(name: str, settings: Mapping[str, Any]) -> None:
    """Check that timm has an optimizer of that name, with these settings of its own.

    Raises:
        ConfigError: it has none, it has other settings, or it does what a run here cannot: second
            derivatives, random numbers of its own.
    """
    names = [str(known) for known in timm.optim.list_optimizers()]
    if name not in names:
        raise ConfigError(f"schedule.optimizer='{name}' is unknown: {nearest(name, names)}")
    if timm.optim.get_optimizer_info(name).second_order:
        raise ConfigError(
            f"schedule.optimizer={name} needs second derivatives, which kdbench does not compute: "
            "choose another"
        )
    made_by = timm.optim.get_optimizer_class(name, bind_defaults=False)
    if made_by is timm.optim.kron.Kron:
        raise ConfigError(
            f"schedule.optimizer={name} draws random numbers of its own, which no resume could "
            "repeat: choose another"
        )
    known = set(inspect.signature(made_by).parameters)
    known -= {*KEYS_OF_OWN, *OF_THE_DEVICE, "kwargs"}
    for key in settings:
        if key not in known:
            raise ConfigError(
                f"schedule.optimizer={name} has no setting '{key}': {nearest(key, known)}"
            )


def make_optimizer(schedule: Schedule, groups: list[Group]) -> torch.optim.Optimizer:
    """Make the optimizer that a schedule names over groups of parameters.

    Adam and AdamW are one fused kernel, on a GPU one that can be recorded; the others are made as
    timm makes them.

    Raises:
        ConfigError: it cannot be made, as those of libraries that are not installed.
    """
    device = groups[0]["params"][0].device
    given = schedule.optimizer_settings or {}
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    if can_be_fused(schedule.optimizer):
        settings |= {"fused": True, "capturable": device.type == "cuda"}
    try:
        return timm.optim.create_optimizer_v2(
            groups,
            opt=schedule.optimizer,
            lr=schedule.lr,
            weight_decay=schedule.weight_decay,
            momentum=schedule.momentum,
            **settings,
        )
    except Exception as error:  # of a library that is missing, or of values out of range
        raise ConfigError(
            f"schedule.optimizer={schedule.optimizer} cannot be made ({first_line(error)}): choose "
            "another, or other schedule.optimizer_settings"
        ) from error


def can_be_fused(name: str) -> bool:
    """Return whether an optimizer is one of PyTorch's that check `found_inf` on the device."""
    made_by: object = timm.optim.get_optimizer_class(name, bind_defaults=False)
    return made_by in (torch.optim.Adam, torch.optim.AdamW)


def groups_of(schedule: Schedule, student: nn.Module) -> list[Group]:
    """Group a student's parameters by weight decay and by layer, each with its learning rate.

    Raises:
        ConfigError: `layer_decay` is set, and nothing says what the network's layers are.
    """
    get_exempt = getattr(student, "no_weight_decay", None)
    exempt = get_exempt() if callable(get_exempt) and schedule.filter_bias_and_bn else ()
    if schedule.layer_decay is None:
        groups: list[Group] = timm.optim.param_groups_weight_decay(
            student, schedule.weight_decay, no_weight_decay_list=exempt
        )
        return groups
    if not hasattr(student, "group_matcher"):
        raise ConfigError(
            "schedule.layer_decay needs a network that says what its layers are: choose a timm "
            "network, or set schedule.layer_decay=null"
        )
    groups = timm.optim.param_groups_layer_decay(
        student,
        schedule.weight_decay,
        no_weight_decay_list=exempt,
        weight_decay_exclude_1d=schedule.filter_bias_and_bn,
        layer_decay=schedule.layer_decay,
    )
    return [{**group, "lr": schedule.lr * group["lr_scale"]} for group in groups]


class TimmRates:
    """The learning rate by one of timm's schedulers, which moves the rate of a stand-in.

    It has timm's warm-up where `warmup_lr` says where that starts. Decay counts from the first
    epoch, the warm-up's included, as timm's without `warmup_prefix`.
    """

    def __init__(self, schedule: Schedule, steps_per_epoch: int) -> None:
        self.by_epoch = schedule.decay_by == "epoch"
        stand_in = torch.optim.SGD([torch.zeros(1)], lr=schedule.lr)
        (self.group,) = stand_in.param_groups
        drops_elsewhere = schedule.decay == "step" and schedule.decay_epochs is None
        self.scheduler, _ = create_scheduler_v2(
            stand_in,
            sched="constant" if drops_elsewhere else SHAPES[schedule.decay],
            num_epochs=schedule.epochs,
            decay_epochs=schedule.decay_epochs,
            decay_rate=1.0 if schedule.decay == "linear" else schedule.gamma,  # poly's power
            min_lr=schedule.min_lr,
            warmup_lr=schedule.warmup_lr or 0.0,
            warmup_epochs=0 if schedule.warmup_lr is None else schedule.warmup_epochs,
            step_on_epochs=self.by_epoch,
            updates_per_epoch=steps_per_epoch,
        )

    def at(self, epoch: int, step: int) -> float:
        """Return the learning rate in `epoch` (from 1) and `step` (from 0, over all epochs)."""
        if self.by_epoch:
            self.scheduler.step(epoch - 1)
        else:
            self.scheduler.step_update(step)
        return float(self.group["lr"])
