"""A process that trains cohorts for the launcher of sweeps; people do not start it.

    python -m kdbench.sweeps.worker DESCRIPTOR

Each line of its input is a cohort's checked configurations. The runs' outcomes are written as a
line to the descriptor: the two processes use pipes, since others could replace files. The process
ends with its input; if that ends during a cohort, the launcher is gone, and the runs write
checkpoints and stop.
"""

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kdbench.config.hydra_cli import INTERRUPTED
from kdbench.errors import ConfigError, DivergedError, HeldError, KdbenchError
from kdbench.records.settings import TrainSettings
from kdbench.schema.secrets import masked
from kdbench.system.signals import STOPS, is_free
from kdbench.training.together import train_together


class Outcome(NamedTuple):
    """The outcome of a run."""

    error: str | None = None  # one line; None: it is done
    final: bool = False  # another try would fail too
    held: bool = False  # another process trains it


def understood(text: str) -> list[TrainSettings]:
    """Read the runs of a `kdbench.sweeps.local.Task` from its text."""
    return [TrainSettings.read(spelt) for spelt in json.loads(text)]


def outcomes(configs: Sequence[TrainSettings]) -> list[Outcome]:
    """Train these runs side by side.

    Raises:
        Interrupted: on Ctrl-C or SIGTERM; the runs can be resumed.
    """
    try:
        results = train_together(configs)
    except Exception as failure:
        results = [failure] * len(configs)
    for error in {id(result): result for result in results}.values():
        if isinstance(error, Exception) and not isinstance(error, KdbenchError):
            print(masked("".join(traceback.format_exception(error))), file=sys.stderr)
    return [outcome(result) for result in results]


def outcome(result: Path | Exception) -> Outcome:
    """Return a run's result as the launcher reads it."""
    if not isinstance(result, Exception):
        return Outcome()
    line = str(result).strip().split("\n")[0]
    if not isinstance(result, KdbenchError):
        line = f"{type(result).__name__}: {line}"
    final = isinstance(result, ConfigError | DivergedError)
    return Outcome(line, final, isinstance(result, HeldError))


def stop_on_sigterm() -> None:
    """Let the signals that stop training end other work as Ctrl-C does."""
    for number in STOPS:
        if is_free(number):
            signal.signal(number, signal.default_int_handler)


class Tasks:
    """The lines of standard input, read while a cohort trains, and the replies to them."""

    def __init__(self) -> None:
        self.replies = os.fdopen(int(sys.argv[1]), "w")
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()  # "" is the end
        self.open = 0  # tasks that were read and are not finished
        self.lock = threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            with self.lock:
                self.open += 1
            self.lines.put(line.rstrip("\n"))
        self.lines.put("")
        with self.lock:
            if self.open:
                os.kill(os.getpid(), signal.SIGTERM)

    def train(self) -> None:
        """Train one cohort after the other until the input ends."""
        while line := self.lines.get():
            found = outcomes(understood(line))
            with suppress(BrokenPipeError):  # the launcher is gone
                print(json.dumps(found), file=self.replies, flush=True)
            with self.lock:
                self.open -= 1


def main() -> None:
    """Train the cohorts that standard input names."""
    stop_on_sigterm()
    try:
        Tasks().train()
    except KeyboardInterrupt as stop:
        if not sys.stderr.isatty():  # on a terminal the launcher prints it for all
            print(str(stop) or "interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
