"""Runs on a terminal: what stands on the screen while they train, and after they have ended."""

import os
import re
import signal
import sys

import pytest

from support.commands import ROOT
from support.terminal import Ended, on_terminal

COMMAND = [sys.executable, "-c", "from kdbench.train import main; main()"]
DIGITS = [
    *("dataset=digits", "dataset.fraction=0.05", "student=resnet8", "schedule.milestones=[]"),
    *("runtime=cpu", "runtime.threads=1"),
]
COHORT = ["-m", "hydra/launcher=cohort", "method=ce,label_smoothing,bce", "schedule.epochs=2"]


@pytest.fixture
def terminal(tmp_path, monkeypatch):
    """Train in an empty folder, on a terminal of its own."""
    monkeypatch.chdir(tmp_path)

    def train(
        *arguments: str, heed=lambda pid, so_far: None, columns: int = 80, **changed
    ) -> Ended:
        ours = {"NO_COLOR", "COLUMNS", "LINES"}  # of who runs the tests
        kept = {key: value for key, value in os.environ.items() if key not in ours}
        environment = {**kept, "PYTHONPATH": str(ROOT / "src"), "TERM": "xterm", **changed}
        return on_terminal([*COMMAND, *DIGITS, *arguments], environment, columns, heed)

    return train


@pytest.mark.slow
def test_a_cohort_leaves_its_table_and_what_was_said(terminal):
    code, screen = terminal(*COHORT)
    assert code == 0, screen.lines
    assert (screen.cursor_shown, screen.column, screen.lines[-1]) == (True, 0, "")
    (start,) = (n for n, line in enumerate(screen.lines) if line.startswith("epoch 2/2  step 3/3"))
    titles, *rows = screen.lines[start + 1 : start + 5]
    assert titles.split("  ")[0] == "run"
    assert titles.endswith("epoch   loss  train top-1  test top-1  best (test)")
    assert [row.split()[:3] for row in rows] == [
        [name, "0", "2"] for name in ("ce", "label_smoothing", "bce")
    ]
    above, below = screen.lines[:start], screen.lines[start + 5 :]
    assert [line.split("-")[3] for line in above[-3:]] == ["ce", "label_smoothing", "bce"]
    assert all(" top-1 " in line for line in below[:3])
    assert below[3].startswith("cohort 1 has ended: 3 of 3 runs done")
    styles = set(re.findall(r"\x1b\[([\d;]*)m", screen.raw))
    assert styles == {"0", "1"}, "bold alone, so that NO_COLOR has nothing to take away"


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGINT]
)
def test_a_run_that_is_stopped_leaves_a_clean_terminal(terminal, number):
    asked = []

    def stop(pid: int, so_far: str) -> None:
        if "epoch 2/" in so_far and not asked:
            assert "\x1b[?25l" in so_far, "the cursor is hidden while the table is drawn"
            asked.append(pid)
            os.kill(pid, number)

    code, screen = terminal("schedule.epochs=2000", heed=stop, columns=45)
    assert code == 130
    assert (screen.cursor_shown, screen.column) == (True, 0)
    *_, titles, row, said, end = screen.lines
    assert titles.split() == ["run", "train", "top-1", "test", "top-1", "best", "(test)"]
    assert row.startswith("ce 0 ")
    assert said.startswith("kdbench: error: stopped in epoch ")
    assert not end


@pytest.mark.long
def test_a_dumb_terminal_without_unicode_gets_a_log(terminal):
    narrow = {"TERM": "dumb", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    code, screen = terminal("schedule.epochs=2", **narrow)
    assert code == 0
    assert "\x1b" not in screen.raw
    name, first, second, _ = screen.lines[:-1]
    assert name.startswith("digits-none-resnet8-ce-s0-")
    assert re.fullmatch(
        r"epoch 1/2 \| ce 0: loss [\d.]+ train top-1 [\d.]+ test top-1 [\d.]+ \| "
        r"[\d.,]+ ms/step \| 0:00:\d\d left",
        first,
    )
    assert second.startswith("epoch 2/2 | ce 0: loss ")
    assert second.endswith(" ms/step")
