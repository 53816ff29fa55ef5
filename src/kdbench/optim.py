"""The schedule of a recipe, and the optimizer that follows it."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from kdbench.errors import ConfigError
from kdbench.methods.base import Method


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

    def __post_init__(self) -> None:
        """Check every setting."""
        for key, lowest in (("epochs", 1), ("batch_size", 1)):
            if getattr(self, key) < lowest:
                raise ConfigError(f"schedule.{key} must be 1 or more, not {getattr(self, key)}")
        for key in ("lr", "gamma"):
            if not 0 < getattr(self, key) < float("inf"):
                raise ConfigError(f"schedule.{key} must be above 0, not {getattr(self, key)}")
        for key in ("momentum", "weight_decay"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise ConfigError(f"schedule.{key} must be 0 or more, not {getattr(self, key)}")
        if any(later <= earlier for earlier, later in pairwise([0, *self.milestones])):
            raise ConfigError(f"schedule.milestones must rise from 1, not {self.milestones}")
        if self.milestones and self.milestones[-1] >= self.epochs:
            raise ConfigError(
                f"schedule.milestones={self.milestones} reach beyond the last drop that could have "
                f"an effect: with {self.epochs} epochs each must be below {self.epochs}"
            )

    def lr_factor(self, epoch: int) -> float:
        """What the learning rate is multiplied by in `epoch` (from 1).

        gamma ^ #{milestones m : epoch > m}, the rule of RepDistiller and mdistiller: a milestone of
        150 takes effect from epoch 151.
        """
        return self.gamma ** sum(epoch > milestone for milestone in self.milestones)


class Optimizer:
    """SGD without Nesterov over a student's and its method's parameters.

    A method's parameter groups may carry their own `lr` and `weight_decay`; the schedule's factor
    applies to them too.
    """

    def __init__(self, schedule: Schedule, student: nn.Module, method: Method) -> None:
        self.schedule = schedule
        groups = [{"params": list(student.parameters())}, *method.param_groups()]
        self.sgd = torch.optim.SGD(
            groups,
            lr=schedule.lr,
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
        )
        self._base_lrs = [group["lr"] for group in self.sgd.param_groups]

    def start_epoch(self, epoch: int) -> None:
        """Set every group's learning rate for `epoch` (from 1)."""
        factor = self.schedule.lr_factor(epoch)
        for group, base in zip(self.sgd.param_groups, self._base_lrs, strict=True):
            group["lr"] = base * factor
