"""The schedule of a detector's recipe, in steps instead of epochs."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from kdbench.errors import ConfigError
from kdbench.optim import Schedule


@dataclass(frozen=True)
class DetectionSchedule:
    """SGD with step decay after a linear warm-up: detectron2's recipe, in numbers.

    Raises:
        ConfigError: a setting that cannot be trained with.
    """

    steps: int
    batch_size: int
    lr: float
    milestones: list[int]  # steps after which the learning rate drops
    gamma: float = 0.1  # factor of each drop
    momentum: float = 0.9
    weight_decay: float = 1e-4  # on every parameter
    warmup_steps: int = 1000  # in which the learning rate rises linearly, to `lr` after the last
    warmup_factor: float = 0.001  # of `lr` in the first of them
    score_steps: int = 20_000  # the student is scored after so many steps each, and at the end
    precision: Literal["fp32", "tf32"] = "fp32"  # of forward passes on a GPU

    def __post_init__(self) -> None:
        """Check every setting."""
        for key in ("steps", "batch_size", "score_steps"):
            if getattr(self, key) < 1:
                raise ConfigError(f"schedule.{key} must be 1 or more, not {getattr(self, key)}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ConfigError(
                f"schedule.warmup_steps must be from 0 to schedule.steps={self.steps}, not "
                f"{self.warmup_steps}"
            )
        for key in ("lr", "gamma", "warmup_factor"):
            if not 0 < getattr(self, key) < float("inf"):
                raise ConfigError(f"schedule.{key} must be above 0, not {getattr(self, key)}")
        for key in ("momentum", "weight_decay"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise ConfigError(f"schedule.{key} must be 0 or more, not {getattr(self, key)}")
        if any(later <= earlier for earlier, later in pairwise([0, *self.milestones])):
            raise ConfigError(f"schedule.milestones must rise from 1, not {self.milestones}")
        if self.milestones and self.milestones[-1] >= self.steps:
            raise ConfigError(
                f"schedule.milestones={self.milestones} must be below schedule.steps={self.steps}"
            )

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by in `step` (from 0).

        gamma ^ #{milestones m : step >= m}, times w (1 - a) + a with a = step / warmup_steps and w
        the warm-up's factor, until that is over. Source: detectron2's WarmupMultiStepLR.
        """
        drops = self.gamma ** sum(step >= milestone for milestone in self.milestones)
        if step >= self.warmup_steps:
            return drops
        risen = step / self.warmup_steps
        return drops * (self.warmup_factor * (1 - risen) + risen)

    def sgd(self) -> Schedule:
        """What `kdbench.optim.Optimizer` reads of it; its rate is set for each step."""
        return Schedule(
            epochs=1,
            batch_size=self.batch_size,
            lr=self.lr,
            milestones=[],
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
