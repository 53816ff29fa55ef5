"""The text of a cohort's table and of its line in a log."""

import pytest

from kdbench.system.run_table import clock, log_line, milliseconds, status, table

TITLES = ["run", "epoch", "loss", "train top-1", "test top-1", "best (test)"]
DROPS = ["epoch", "loss", "train top-1", "best (test)"]
SCORES = ["12", "1.234", "60.10", "58.20", "59.00"]


def runs(count: int) -> list[dict[str, str]]:
    return [
        dict(zip(TITLES, [f"method{number} 0", *SCORES], strict=True)) for number in range(count)
    ]


def test_a_lone_run_has_a_row():
    assert table(TITLES, runs(1), DROPS, 80) == [
        "run        epoch   loss  train top-1  test top-1  best (test)",
        "method0 0     12  1.234        60.10       58.20        59.00",
    ]


def test_what_a_run_lacks_is_blank():
    started = {"run": "kd 0 (failed)"}
    assert table(TITLES, [started, *runs(1)], DROPS, 80) == [
        "run            epoch   loss  train top-1  test top-1  best (test)",
        "kd 0 (failed)",
        "method0 0         12  1.234        60.10       58.20        59.00",
    ]


@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize(
    ("width", "left"),
    [
        (80, TITLES),
        (58, ["run", "loss", "train top-1", "test top-1", "best (test)"]),
        (50, ["run", "train top-1", "test top-1", "best (test)"]),
        (40, ["run", "test top-1", "best (test)"]),
        (30, ["run", "test top-1"]),
        (18, ["run", "test top-1"]),
    ],
)
def test_a_narrow_terminal_goes_without_columns_in_a_fixed_order(count, width, left):
    titles, *lines = table(TITLES, runs(count), DROPS, width)
    assert [title for title in TITLES if title in titles] == left
    assert len(lines) == count
    assert all(len(line) <= width for line in (titles, *lines))
    assert all("58.20" in line for line in lines)


def test_on_the_narrowest_terminal_no_line_is_too_long():
    for width in range(1, 18):
        assert max(len(line) for line in table(TITLES, runs(2), DROPS, width)) <= width
        assert len(status({"place": "epoch 12/240", "left": "1:02:10 left"}, [], width)) == width


def test_the_status_goes_without_parts_in_a_fixed_order():
    parts = {
        **{"place": "epoch 12/240", "step": "step 8/45", "loss": "", "rate": "3.1 ms/step"},
        "left": "1:02:10 left",
    }
    drops = ["loss", "step", "rate", "left"]
    whole = "epoch 12/240  step 8/45  3.1 ms/step  1:02:10 left"
    assert status(parts, drops, len(whole)) == whole
    assert status(parts, drops, len(whole) - 1) == "epoch 12/240  3.1 ms/step  1:02:10 left"
    assert status(parts, drops, 30) == "epoch 12/240  1:02:10 left"
    assert status(parts, drops, 20) == "epoch 12/240"
    assert status(parts, drops, 5) == "epoch"


def test_a_log_has_one_line_for_all_runs():
    parts = {"place": "epoch 12/240", "a": "kd 0: loss 1.234", "b": "dkd 0: failed", "left": ""}
    assert log_line(parts) == "epoch 12/240 | kd 0: loss 1.234 | dkd 0: failed"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00:00"), (59.6, "0:01:00"), (3730.0, "1:02:10"), (360_000.0, "100:00:00")],
)
def test_time_left_is_in_hours(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0031, "3.1 ms/step"), (0.1004, "100 ms/step"), (1.5, "1,500 ms/step")],
)
def test_steps_are_in_milliseconds(seconds, text):
    assert milliseconds(seconds) == text
