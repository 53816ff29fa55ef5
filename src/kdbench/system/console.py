"""The terminal's messages and progress display while runs train."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kdbench.system.escapes import for_terminal, printable

SILENCE = 600.0  # seconds without a line, after which a log that is no terminal gets one


class Display:
    """The progress of a cohort: a live line on a terminal, a line for each row everywhere.

    Where there is no terminal and scores are far apart, there are lines between them too.
    """

    def __init__(
        self, names: Sequence[str], steps: int, words: Mapping[str, str], progress: Progress
    ) -> None:
        self._words, self._progress = {"train/loss": "loss", **words}, progress
        self._labels = {name: f"  {printable(name)}" if len(names) > 1 else "" for name in names}
        self._task = progress.add_task("", total=steps, state="", metrics="")
        self._last: tuple[float, int] | None = None  # time, steps done
        self._told_at = time.monotonic()  # the last line

    def step(self, done: int, state: str, means: Mapping[str, float]) -> None:
        """Show the steps done, how far they are in words, and the means since the last row."""
        now = time.monotonic()
        if self._last is None:  # a resumed run starts here; earlier steps are no measure of speed
            self._progress.reset(self._task, completed=done)
        else:
            rate = (done - self._last[1]) / max(now - self._last[0], 1e-9)
            metrics = f"{self._told(means)}  {rate:,.1f} steps/s"
            self._progress.update(self._task, completed=done, state=state, metrics=metrics)
            if self._progress.disable and now - self._told_at > SILENCE:
                self._say(f"  {state}  {metrics}")
        self._last = now, done

    def row(self, name: str, state: str, row: Mapping[str, float]) -> None:
        """Show the scores of the run called `name`."""
        self._say(f"{self._labels[name]}  {state}  {self._told(row)}  {row['seconds']:.0f} s")
        self._last = None if self._last is None else (time.monotonic(), self._last[1])

    def _say(self, line: str) -> None:
        self._progress.console.print(line, highlight=False, markup=False)
        self._told_at = time.monotonic()

    def _told(self, row: Mapping[str, float]) -> str:
        digits = {"train/loss": 3}
        shown = [key for key in self._words if key in row]
        return "  ".join(f"{self._words[key]} {row[key]:.{digits.get(key, 2)}f}" for key in shown)


class Console:
    """The only writer to the terminal while runs train."""

    def __init__(self, quiet: bool = False) -> None:
        self.speaks = not quiet
        self._console = RichConsole(soft_wrap=True, quiet=quiet)

    def message(self, text: str) -> None:
        """Print one line."""
        self._console.print(for_terminal(text), highlight=False, markup=False)

    @contextmanager
    def display(
        self, names: Sequence[str], steps: int, words: Mapping[str, str]
    ) -> Iterator[Display]:
        """Open a progress display for runs of `steps`, side by side; `words` name their scores."""
        for name in names:
            self.message(name)
        progress = Progress(
            TextColumn("{task.fields[state]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        with progress:
            yield Display(names, steps, words, progress)


def duration(seconds: float) -> str:
    """Return seconds as text in a suitable unit."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
