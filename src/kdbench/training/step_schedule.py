"""Learning rate, batch size, steps and precision of a recipe that counts steps, not epochs."""

from dataclasses import dataclass

from kdbench.errors import ConfigError
from kdbench.system.precision import Precision
from kdbench.training.schedule import Schedule, check_schedule


@dataclass(frozen=True)
class StepSchedule:
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
    warmup_steps: int = 1000  # the learning rate rises linearly over them, to `lr` after the last
    warmup_factor: float = 0.001  # of `lr` in the first of them
    score_steps: int = 20_000  # steps between scores of the student; it is also scored at the end
    precision: Precision = "fp32"  # of the networks' forward passes; losses and weights are fp32
    micro_batches: int = 1  # of a batch, computed in sequence or on several ranks

    def __post_init__(self) -> None:
        """Check every setting."""
        check_schedule(self, "steps", "batch_size", "score_steps", "micro_batches")
        if not 0 < self.warmup_factor < float("inf"):
            raise ConfigError(f"schedule.warmup_factor must be above 0, not {self.warmup_factor}")
        if self.precision == "fp16":
            raise ConfigError("schedule.precision=fp16 is of classifiers: set it to bf16")

    def factor(self, step: int) -> float:
        """Return the factor of the learning rate in `step` (from 0).

        gamma ^ #{milestones m : step >= m}, times w (1 - a) + a with a = step / warmup_steps and w
        the warm-up's factor, until that is over. Source: detectron2's WarmupMultiStepLR.
        """
        drops = self.gamma ** sum(step >= milestone for milestone in self.milestones)
        if step >= self.warmup_steps:
            return drops
        risen = step / self.warmup_steps
        return drops * (self.warmup_factor * (1 - risen) + risen)

    def sgd(self) -> Schedule:
        """Return the settings of its optimizer, whose rate is set for each step."""
        return Schedule(
            epochs=1,
            batch_size=self.batch_size,
            lr=self.lr,
            milestones=[],
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
