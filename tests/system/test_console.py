"""What is said while runs train: a table's lines, and a log's."""

import io
import sys

import pytest
from rich.console import Console as RichConsole

from kdbench.system import console
from kdbench.system.console import Console, Display
from kdbench.training.pace import Pace
from kdbench.training.schedule import Schedule
from kdbench.training.step_schedule import StepSchedule
from support.terminal import Screen

RUNS = {"digits-none-resnet8-ce-s0-1": "ce 0", "digits-none-resnet8-bce-s0-2": "bce 0"}
CE, BCE = RUNS
EPOCHS = Pace(Schedule(3, 16, 0.1, []), 40)
STEPS = Pace(StepSchedule(9, 16, 0.1, [], warmup_steps=0, score_steps=3), 40)
TOP1 = {"train/top1": "train top-1", "test/top1": "test top-1"}


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, which stands still unless a test changes it."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def row(epoch: int, loss: float, train: float, test: float) -> dict[str, float]:
    place = {"epoch": epoch, "seconds": 1.0}
    return {**place, "train/loss": loss, "train/top1": train, "test/top1": test}


def test_a_table_has_the_last_scores_and_the_best_on_test(clock):
    display = Display(RUNS, EPOCHS, TOP1, "test/top1", print)
    histories = {CE: [], BCE: []}
    display.start(0, histories)
    assert display.lines(80) == [
        "epoch 1/3  step 0/3",
        "run    epoch  loss  train top-1  test top-1  best (test)",
        "ce 0",
        "bce 0",
    ]
    display.live = Drawn()
    display.start_row()
    for step in (1, 2, 3):
        display.step(step)
    clock[0] = 0.6
    display.read(lambda: 2.5)
    histories[CE] += [row(1, 2.0, 50.0, 61.0)]
    histories[BCE] += [row(1, 3.0, 40.0, 30.0)]
    assert display.lines(80)[0] == "epoch 1/3  step 3/3  loss so far 2.500  200 ms/step"
    clock[0] = 1.0
    display.row([CE, BCE])
    display.step(4)
    histories[CE] += [row(2, 1.0, 70.0, 60.0)]
    display.fail([CE])
    assert display.lines(80) == [
        "epoch 2/3  step 1/3  200 ms/step  0:00:02 left",
        "run             epoch   loss  train top-1  test top-1  best (test)",
        "ce 0                2  1.000        70.00       60.00        61.00",
        "bce 0 (failed)      1  3.000        40.00       30.00        30.00",
    ]
    assert display.lines(40) == [
        "epoch 2/3  200 ms/step  0:00:02 left",
        "run             test top-1  best (test)",
        "ce 0                 60.00        61.00",
        "bce 0 (failed)       30.00        30.00",
    ]


class Drawn:
    """A live table that counts how often it was drawn."""

    def __init__(self) -> None:
        self.times = 0

    def refresh(self) -> None:
        self.times += 1


def test_steps_are_drawn_a_few_times_a_second_and_scores_at_once(clock):
    display = Display(RUNS, EPOCHS, TOP1, "test/top1", print)
    display.live = drawn = Drawn()
    display.start(0, {CE: [], BCE: []})
    assert drawn.times == 1
    for step in range(1, 201):
        clock[0] = step / 100
        display.step(step)
        display.read(lambda: 1.0)
    assert 6 <= drawn.times <= 8, "of two seconds"
    display.row([CE, BCE])
    assert 7 <= drawn.times <= 9


def test_a_log_has_a_line_an_epoch(clock, capsys):
    histories = {CE: [], BCE: []}
    with Console().display(RUNS, EPOCHS, TOP1, "test/top1") as display:
        display.start(0, histories)
        for epoch in (1, 2):
            display.start_row()
            display.step(3 * epoch)
            clock[0] += 1.0
            display.read(lambda: pytest.fail("the loss is not read where nobody is told"))
            clock[0] += 0.5
            histories[CE] += [row(epoch, 1 / epoch, 70.0, 60.0)]
            histories[BCE] += [row(1, 3.0, 40.0, 30.0)] if epoch == 1 else []
            display.row([CE, BCE][: 3 - epoch])
    assert capsys.readouterr().out.splitlines() == [
        CE,
        BCE,
        "epoch 1/3 | ce 0: loss 1.000 train top-1 70.00 test top-1 60.00 | "
        "bce 0: loss 3.000 train top-1 40.00 test top-1 30.00 | 333 ms/step | 0:00:03 left",
        "epoch 2/3 | ce 0: loss 0.500 train top-1 70.00 test top-1 60.00 | "
        "bce 0: failed | 333 ms/step | 0:00:02 left",
    ]


def test_detectors_have_their_words_and_a_silent_log_gets_a_line(clock, capsys):
    history = []
    with Console().display({CE: "ce 0"}, STEPS, {"test/ap": "AP"}, "test/ap") as display:
        display.start(0, {CE: history})
        display.start_row()
        display.step(2)
        clock[0] = console.SILENCE + 1
        display.read(lambda: 4.25)
        display.step(3)
        history.append({"step": 3, "epoch": 1.0, "train/loss": 4.0, "test/ap": 1.5})
        display.row([CE])
        assert display.lines(80)[1:] == [
            "run   step   loss    AP  best (test)",
            "ce 0     3  4.000  1.50         1.50",
        ]
    assert capsys.readouterr().out.splitlines() == [
        CE,
        "step 2/9 | loss so far 4.250 | 300,500 ms/step",
        "step 3/9 | ce 0: loss 4.000 AP 1.50 | 300,500 ms/step | 0:30:03 left",
    ]


class Terminal(io.StringIO):
    """A standard output that is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_what_others_say_meanwhile_stands_above_the_table(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    terminal = RichConsole(
        soft_wrap=True, width=20, force_terminal=True, _environ={"TERM": "xterm"}
    )
    monkeypatch.setattr(console, "_stdout", lambda: terminal)
    histories = {CE: [], BCE: []}
    with Console().display(RUNS, EPOCHS, TOP1, "test/top1") as display:
        display.start(0, histories)
        Console().message("an image that cannot be read was left out")  # a decoder's own console
        print("a line of a library")
        histories[CE] += [row(1, 2.0, 50.0, 61.0)]
        display.row([CE])
    assert Screen.after(screen.getvalue().replace("\n", "\r\n")).lines == [
        CE,
        BCE,
        "an image that cannot be read was left out",
        "a line of a library",
        "epoch 1/3  step 0/3",
        "run       test top-1",
        "ce 0           61.00",
        "bce 0 (f",
        "",
    ]


def test_other_ranks_say_nothing(capsys):
    with Console(quiet=True).display(RUNS, EPOCHS, TOP1, "test/top1") as display:
        display.start(0, {CE: [row(1, 2.0, 50.0, 61.0)], BCE: [row(1, 2.0, 50.0, 61.0)]})
        display.row([CE, BCE])
    assert not capsys.readouterr().out


def test_what_standard_output_cannot_write_is_a_question_mark(monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    Console().message("the folder Bücher")
    with Console().display({"é": "é"}, EPOCHS, TOP1, "test/top1") as display:
        display.start(0, {"é": [row(1, 2.0, 50.0, 61.0)]})
        display.row(["é"])
    narrow.flush()
    folder, name, line = narrow.buffer.getvalue().decode().splitlines()
    assert (folder, name) == ("the folder B?cher", "?")
    assert line.startswith("epoch 1/3 | ?: loss 2.000 ")
