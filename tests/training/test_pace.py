"""Schedules of epochs and of steps, as the training loop counts them."""

from kdbench.training.pace import Pace
from kdbench.training.schedule import Schedule
from kdbench.training.step_schedule import StepSchedule

IMAGES, BATCH = 40, 16  # steps of 16, 16 and 8 images


def test_a_schedule_of_epochs_is_scored_after_each():
    pace = Pace(Schedule(3, BATCH, 0.1, []), IMAGES)
    assert (pace.epoch_steps, pace.steps, pace.row_steps) == (3, 9, 3)
    assert [pace.row_end(step) for step in (0, 2, 3, 8)] == [3, 3, 6, 9]
    assert [pace.row_start(step) for step in (0, 1, 3, 4, 9)] == [0, 0, 0, 3, 6]
    assert [pace.seen(step) for step in (0, 2, 3, 4)] == [0, 32, 40, 56]
    assert [pace.epoch_of(step) for step in (0, 1, 3, 4)] == [1, 1, 1, 2]
    assert (pace.place(6), pace.words(6)) == ({"epoch": 2}, "epoch 2/3")
    assert pace.unit == "epoch"


def test_a_schedule_of_steps_is_scored_at_its_end_too():
    pace = Pace(StepSchedule(5, BATCH, 0.1, [], warmup_steps=0, score_steps=2), IMAGES)
    assert (pace.steps, pace.row_steps) == (5, 2)
    assert [pace.row_end(step) for step in (0, 2, 4)] == [2, 4, 5]
    assert [pace.row_start(step) for step in (2, 3, 5)] == [0, 2, 4]
    assert (pace.place(5), pace.words(5)) == ({"step": 5, "epoch": 5 / 3}, "step 5/5")
    assert pace.unit == "step"
