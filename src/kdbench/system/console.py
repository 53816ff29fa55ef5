"""The terminal's messages and progress display while runs train."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kdbench.system.escapes import for_terminal, printable


class Display:
    """The progress of a cohort: a live line on a terminal, a line for each epoch everywhere."""

    def __init__(self, names: Sequence[str], epochs: int, images: int, progress: Progress) -> None:
        self._epochs, self._images, self._progress = epochs, images, progress
        self._labels = {name: f"  {printable(name)}" if len(names) > 1 else "" for name in names}
        self._task = progress.add_task("", total=epochs * images, state="", metrics="")
        self._last: tuple[float, int] | None = None  # time, images seen in all

    def step(self, epoch: int, seen: int, loss: float, top1: float) -> None:
        """Show the images seen in an epoch (from 1), their mean loss and top-1 in percent."""
        now, done = time.monotonic(), (epoch - 1) * self._images + seen
        if self._last is None:  # a resumed run starts here; earlier images are no measure of speed
            self._progress.reset(self._task, completed=done)
        else:
            rate = (done - self._last[1]) / max(now - self._last[0], 1e-9)
            metrics = f"loss {loss:.3f}  top-1 {top1:.1f}  {rate:,.0f} images/s"
            self._progress.update(
                self._task,
                completed=done,
                state=f"epoch {epoch}/{self._epochs}",
                metrics=metrics,
            )
        self._last = now, done

    def epoch(self, name: str, row: Mapping[str, float]) -> None:
        """Show the row of an evaluated epoch of the run called `name`."""
        self._progress.console.print(
            f"{self._labels[name]}  epoch {row['epoch']:.0f}/{self._epochs}"
            f"  loss {row['train/loss']:.3f}"
            f"  train top-1 {row['train/top1']:.2f}  test top-1 {row['test/top1']:.2f}"
            f"  {row['seconds']:.0f} s",
            highlight=False,
            markup=False,
        )
        self._last = None if self._last is None else (time.monotonic(), self._last[1])


class Console:
    """The only writer to the terminal while runs train."""

    def __init__(self, quiet: bool = False) -> None:
        self.speaks = not quiet
        self._console = RichConsole(soft_wrap=True, quiet=quiet)

    def message(self, text: str) -> None:
        """Print one line."""
        self._console.print(for_terminal(text), highlight=False, markup=False)

    @contextmanager
    def display(self, names: Sequence[str], epochs: int, images: int) -> Iterator[Display]:
        """Open a progress display for runs of `epochs` over `images` each, side by side."""
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
            yield Display(names, epochs, images, progress)


def duration(seconds: float) -> str:
    """Return seconds as text in a suitable unit."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
