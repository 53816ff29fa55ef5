"""The terminal's messages and progress display while runs train."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Protocol

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from kdbench.system.escapes import for_terminal, printable
from kdbench.system.run_table import clock, log_line, milliseconds, status, table
from kdbench.system.speed import Speed

SILENCE = 600.0  # seconds without a line, after which a log that is no terminal gets one
REDRAWN_AFTER = 0.25  # seconds at least between two drawings of the table while steps are done
RUN, BEST = "run", "best (test)"  # titles of columns; the best is no headline: test images chose it


class Course(Protocol):
    """The steps of runs side by side, and after which of them there are scores."""

    @property
    def steps(self) -> int:
        """All steps."""

    @property
    def row_steps(self) -> int:
        """The steps between scores."""

    @property
    def unit(self) -> str:
        """The key of a row that says where its scores stand: "epoch" or "step"."""

    def row_start(self, step: int) -> int:
        """Return the step of the last score before `step` steps, or 0."""

    def words(self, step: int) -> str:
        """Return how far `step` steps are, for people."""


class Display:
    """The progress of runs side by side: a live table on a terminal, in a log a line for all.

    A line comes with the scores; where these are far apart, there are lines between them too.
    """

    def __init__(
        self,
        runs: Mapping[str, str],
        course: Course,
        words: Mapping[str, str],
        headline: str,
        say: Callable[[str], None],
    ) -> None:
        self._names = {run: printable(name) for run, name in runs.items()}
        self._course, self._say = course, say
        self._words, self._headline = {"train/loss": "loss", **words}, headline
        self._titles = [RUN, course.unit, *self._words.values(), BEST]
        kept = RUN, self._words[headline]
        self._drops = [title for title in self._titles if title not in kept]
        self._histories: Mapping[str, Sequence[Mapping[str, float]]] = {run: [] for run in runs}
        self._alive = set(runs)
        self._speed = Speed(course.steps, course.row_steps)
        self._done, self._loss = 0, ""  # steps; the loss since the last row, in words
        self._told_at = self._drawn_at = time.monotonic()
        self.live: Live | None = None  # where there is a terminal

    def start(self, done: int, histories: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
        """Training starts, or goes on after `done` steps and these rows of each run."""
        self._done, self._histories = done, histories
        self._speed.start(done, time.monotonic())
        self._draw()

    def start_row(self) -> None:
        """The first step towards the next scores starts."""
        self._speed.start_row(self._done, time.monotonic())

    def step(self, done: int) -> None:
        """Show the steps that were started; the device may be behind."""
        self._done = done
        if self.live is not None and time.monotonic() - self._drawn_at > REDRAWN_AFTER:
            self._draw()

    def read(self, loss: Callable[[], float]) -> None:
        """Show the runs' mean loss since the last row, now that the device has done all steps."""
        now = time.monotonic()
        self._speed.read(self._done, now)
        if self.live is not None or now - self._told_at > SILENCE:
            self._loss = f"loss so far {loss():.3f}"
        if self.live is None and now - self._told_at > SILENCE:
            self._tell(self._parts())

    def row(self, alive: Sequence[str]) -> None:
        """Show the new scores of the runs that are `alive`; the others have failed."""
        self._speed.end_row(self._done, time.monotonic())
        self._loss = ""
        self.fail(alive)
        if self.live is None:
            runs = {run: self._in_line(run) for run in self._names}
            self._tell({"place": self._course.words(self._done), **runs, **self._times()})

    def fail(self, alive: Sequence[str]) -> None:
        """Show that all runs but those `alive` have failed."""
        self._alive = set(alive)
        self._draw()

    def lines(self, width: int) -> list[str]:
        """Return the table, none of its lines wider than `width`."""
        rows = [self._in_table(run) for run in self._names]
        head = status(self._parts(), ("loss", "step", "rate", "left"), width)
        return [head, *table(self._titles, rows, self._drops, width)]

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> RenderResult:
        """Draw the table at the terminal's present width."""
        head, titles, *rows = self.lines(options.max_width)
        text = Text(f"{head}\n", no_wrap=True, overflow="crop", end="")
        yield text.append(titles, "bold").append("".join(f"\n{row}" for row in rows))

    def _draw(self) -> None:
        if self.live is not None:
            self._drawn_at = time.monotonic()
            self.live.refresh()

    def _tell(self, parts: Mapping[str, str]) -> None:
        self._told_at = time.monotonic()
        self._say(log_line(parts))

    def _parts(self) -> dict[str, str]:
        course, done = self._course, self._done
        within = f"step {done - course.row_start(done)}/{course.row_steps}"
        return {
            "place": course.words(done),
            "step": within if course.unit == "epoch" else "",
            "loss": self._loss,
            **self._times(),
        }

    def _times(self) -> dict[str, str]:
        step, left = self._speed.step, self._speed.left(self._done, time.monotonic())
        return {
            "rate": "" if step is None else milliseconds(step),
            "left": "" if left is None else f"{clock(left)} left",
        }

    def _in_table(self, run: str) -> dict[str, str]:
        name, history = self._names[run], self._histories[run]
        found = {RUN: name if run in self._alive else f"{name} (failed)"}
        if history:
            last, best = history[-1], max(row[self._headline] for row in history)
            found[self._course.unit] = f"{last[self._course.unit]:.0f}"
            found |= dict(zip(self._words.values(), self._numbers(last), strict=True))
            found[BEST] = f"{best:.2f}"
        return found

    def _in_line(self, run: str) -> str:
        scores = self._told(self._histories[run][-1]) if run in self._alive else ["failed"]
        return f"{self._names[run]}: {' '.join(scores)}"

    def _told(self, row: Mapping[str, float]) -> list[str]:
        pairs = zip(self._words.values(), self._numbers(row), strict=True)
        return [f"{word} {number}" for word, number in pairs if number]

    def _numbers(self, row: Mapping[str, float]) -> list[str]:
        digits = {"train/loss": 3}
        return [f"{row[key]:.{digits.get(key, 2)}f}" if key in row else "" for key in self._words]


@cache
def _stdout() -> RichConsole:
    """Return the one console of all: what is said while a table is live is printed above it."""
    return RichConsole(soft_wrap=True)


class Console:
    """The only writer to the terminal while runs train."""

    def __init__(self, quiet: bool = False) -> None:
        self.speaks = not quiet

    def message(self, text: str) -> None:
        """Print one line."""
        if self.speaks:
            _stdout().print(_encodable(for_terminal(text)), highlight=False, markup=False)

    @contextmanager
    def display(
        self, runs: Mapping[str, str], course: Course, words: Mapping[str, str], headline: str
    ) -> Iterator[Display]:
        """Open a progress display for runs side by side.

        Args:
            runs: the runs' names, and short ones that tell them apart.
            course: their steps.
            words: what their scores are called: key of a row -> words.
            headline: the key of the score that counts.
        """
        for name in runs:
            self.message(name)
        names = {run: _encodable(short) for run, short in runs.items()}
        display = Display(names, course, words, headline, self.message)
        if not (self.speaks and _is_terminal()):
            yield display
            return
        with Live(display, console=_stdout(), auto_refresh=False) as display.live:
            yield display


def _is_terminal() -> bool:
    """Return whether lines on standard output can be drawn again."""
    return sys.stdout.isatty() and _stdout().is_interactive  # the latter: TERM is not dumb


def _encodable(text: str) -> str:
    """Return text with question marks for what standard output has no characters for."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def duration(seconds: float) -> str:
    """Return seconds as text in a suitable unit."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
