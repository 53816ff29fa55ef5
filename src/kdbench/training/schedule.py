"""Learning rate, batch size, epochs and precision of a recipe."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from kdbench.errors import ConfigError
from kdbench.system.precision import Precision, TablePrecision


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
    table_precision: TablePrecision = "fp32"  # of the output cache
    warmup_epochs: int = 0  # the learning rate rises linearly over their steps, to `lr` in the last
    micro_batches: int = 1  # of a batch, computed in sequence or on several ranks

    def __post_init__(self) -> None:
        """Check every setting."""
        check_schedule(self, "epochs", "batch_size", "micro_batches")

    def lr_factor(self, epoch: int) -> float:
        """Return the factor of the learning rate in `epoch` (from 1).

        gamma ^ #{milestones m : epoch > m}, the rule of RepDistiller and mdistiller: a milestone of
        150 takes effect from epoch 151.
        """
        return self.gamma ** sum(epoch > milestone for milestone in self.milestones)

    def warm_up_factor(self, step: int, steps_per_epoch: int) -> float:
        """Return the further factor of the learning rate in `step` (from 0, over all epochs).

        (step + 1) / (steps of the warm-up), the rule of Tf-KD and DR-KD; 1 after the warm-up.
        """
        warm_up = self.warmup_epochs * steps_per_epoch
        return (step + 1) / warm_up if step < warm_up else 1.0


def check_schedule(schedule: Any, length: str, *counts: str) -> None:
    """Check the settings that all schedules have: counts, SGD's numbers, a warm-up and milestones.

    Args:
        schedule: has `lr`, `gamma`, `momentum`, `weight_decay`, `milestones` and the named keys.
        length: "epochs" or "steps", the unit of its length.
        counts: further keys whose values must be 1 or more.

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
