"""What records and tables of each task differ in."""

from collections.abc import Mapping
from typing import NamedTuple


class Task(NamedTuple):
    """The differences between the records of tasks."""

    metric: str  # of the headline, in published.csv and the ledger
    word: str  # of the metric, for people
    length: str  # the unit of training's length, in schedule and record
    headline: str  # of a row, and so of the curve
    scores: tuple[str, ...]  # of a run that is done, in percent

    @property
    def place(self) -> str:
        """The place of the headline in training, for people."""
        return f"last {self.length.removesuffix('s')}"


TASKS = {
    "classification": Task(
        *("top1", "top-1", "epochs", "test/top1"),
        ("top1_last", "top1_last5", "top1_best_on_test"),
    ),
    "detection": Task(
        *("ap", "AP", "steps"),
        "test/ap",
        (
            *("ap_last", "ap_best_on_test", "ap50_last", "ap75_last"),
            *("ap_small_last", "ap_medium_last", "ap_large_last"),
        ),
    ),
}


def task_of(schedule: Mapping[str, object]) -> Task:
    """Return the task whose schedules have the unit of this one's length."""
    return next(task for task in TASKS.values() if task.length in schedule)
