"""How long the steps of a run take, and how long all that are left will."""

import statistics
from collections import deque

RECENT = 10  # rows whose durations say how long the next ones will take


class Speed:
    """The speed of steps, which are scored after every `row_steps`.

    All times are seconds of one clock. A row's time runs from the end of the row before, so that
    scoring and checkpoints are part of it.
    """

    def __init__(self, steps: int, row_steps: int) -> None:
        self.steps, self.row_steps = steps, row_steps
        self.step: float | None = None  # seconds of a step, without scoring
        self._rows: deque[float] = deque(maxlen=RECENT)  # seconds of whole rows
        self._started, self._ended = (0.0, 0), (0.0, 0)  # the row's first step, the last row's end

    def start(self, done: int, now: float) -> None:
        """Training starts, or goes on after `done` steps."""
        self._started = self._ended = now, done

    def start_row(self, done: int, now: float) -> None:
        """The first step of a row starts, after `done` others."""
        self._started = now, done

    def read(self, done: int, now: float) -> None:
        """The device has finished all of `done` steps."""
        since, before = self._started
        if done > before:
            self.step = (now - since) / (done - before)

    def end_row(self, done: int, now: float) -> None:
        """The scores of a row are there."""
        since, before = self._ended
        if done - before == self.row_steps:  # part of a row, after a resume, has a whole scoring
            self._rows.append(now - since)
        self._ended = now, done

    def left(self, done: int, now: float) -> float | None:
        """Return the seconds until the last scores; None at the end, and before a whole row.

        It is what rows have taken lately, in the median, and at least what the steps alone take.
        """
        since, before = self._ended
        if not self._rows or before == self.steps:
            return None
        rows = (self.steps - before) / self.row_steps * statistics.median(self._rows)
        return max(rows - (now - since), (self.steps - done) * (self.step or 0.0))
