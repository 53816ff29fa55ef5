"""A schedule in steps: how many there are, after which the student is scored, at which rates."""

from dataclasses import dataclass
from typing import Any

from kdbench.training.optimizer import Optimizer
from kdbench.training.schedule import Schedule
from kdbench.training.step_schedule import StepSchedule

AnySchedule = Schedule | StepSchedule


@dataclass(frozen=True)
class Pace:
    """The steps of a schedule on a number of training images.

    Every row of a run's history is the score of a student after `row_steps` further steps, or after
    the last step.
    """

    schedule: AnySchedule
    images: int

    @property
    def epoch_steps(self) -> int:
        """The steps of an epoch; its last, short batch is kept."""
        return -(-self.images // self.schedule.batch_size)

    @property
    def steps(self) -> int:
        """All steps."""
        if isinstance(self.schedule, StepSchedule):
            return self.schedule.steps
        return self.schedule.epochs * self.epoch_steps

    @property
    def row_steps(self) -> int:
        """The steps between scores."""
        if isinstance(self.schedule, StepSchedule):
            return self.schedule.score_steps
        return self.epoch_steps

    def row_end(self, step: int) -> int:
        """Return the step of the next score after `step` steps."""
        return min((step // self.row_steps + 1) * self.row_steps, self.steps)

    def row_start(self, step: int) -> int:
        """Return the step of the last score before `step` steps, or 0."""
        return max(step - 1, 0) // self.row_steps * self.row_steps

    def epoch_of(self, step: int) -> int:
        """Return the epoch (from 1) of the last of `step` steps."""
        return max(step - 1, 0) // self.epoch_steps + 1

    def seen(self, step: int) -> int:
        """Return the images of `step` steps, over all epochs."""
        epochs, within = divmod(step, self.epoch_steps)
        return epochs * self.images + within * self.schedule.batch_size

    @property
    def unit(self) -> str:
        """The key of a row for its place: "epoch" or "step"."""
        return "step" if isinstance(self.schedule, StepSchedule) else "epoch"

    def place(self, step: int) -> dict[str, float]:
        """Return the head of the row after `step` steps, in the schedule's own unit."""
        if isinstance(self.schedule, StepSchedule):
            return {"step": step, "epoch": step / self.epoch_steps}
        return {"epoch": self.epoch_of(step)}

    def words(self, step: int) -> str:
        """Return how far `step` steps are, for people."""
        if isinstance(self.schedule, StepSchedule):
            return f"step {step}/{self.steps}"
        return f"epoch {self.epoch_of(step)}/{self.schedule.epochs}"

    def start_row(self, optimizer: Optimizer, step: int) -> None:
        """Set the learning rates after `step` steps, where the student was scored or resumes."""
        if isinstance(self.schedule, Schedule):
            optimizer.start_epoch(step // self.epoch_steps + 1)

    def start_step(self, optimizer: Optimizer, step: int) -> None:
        """Set the learning rates of the step after `step` others, where they change with it."""
        if isinstance(self.schedule, StepSchedule):
            optimizer.set_rates(self.schedule.factor(step))
        else:
            optimizer.start_step(step, self.epoch_steps)


def optimizer_settings(schedule: Any) -> Schedule:
    """Return the settings of a schedule's optimizer."""
    return schedule.sgd() if isinstance(schedule, StepSchedule) else schedule
