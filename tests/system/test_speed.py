"""Time left goes by what rows have taken, with what is not a step in it."""

from kdbench.system.speed import Speed


def test_time_left_is_the_median_row_s_with_its_scoring():
    speed, now = Speed(steps=60, row_steps=10), 100.0
    speed.start(0, now)
    for row, scoring in enumerate((50.0, 2.0, 2.0), 1):  # the first one compiles
        speed.start_row(10 * row - 10, now)
        speed.read(10 * row, now + 10)
        now += 10 + scoring
        speed.end_row(10 * row, now)
    assert speed.step == 1.0, "a step has no scoring in it"
    assert speed.left(30, now) == 3 * 12.0
    assert speed.left(35, now + 5) == 3 * 12.0 - 5


def test_time_left_is_not_known_before_a_whole_row_and_nothing_at_the_end():
    speed = Speed(steps=20, row_steps=10)
    speed.start(4, 0.0)  # a resumed run
    speed.end_row(10, 9.0)
    assert speed.left(10, 9.0) is None, "six steps and a scoring are no row"
    speed.end_row(20, 20.0)
    assert speed.left(20, 20.0) is None


def test_time_left_is_at_least_that_of_the_steps():
    speed = Speed(steps=30, row_steps=10)
    speed.start(0, 0.0)
    speed.end_row(10, 10.0)
    speed.start_row(10, 10.0)
    speed.read(15, 60.0)  # others have come onto the machine
    assert speed.step == 10.0
    assert speed.left(15, 60.0) == 15 * 10.0


def test_a_read_before_the_first_step_says_nothing():
    speed = Speed(steps=30, row_steps=10)
    speed.start(10, 0.0)
    speed.read(10, 5.0)
    assert speed.step is None
