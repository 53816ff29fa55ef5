"""Loggers of a run's metrics: the local file is authoritative, other loggers mirror it."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdbench.errors import KdbenchError, writing
from kdbench.records.contents import Record
from kdbench.records.identity import Identity
from kdbench.records.settings import TrainSettings
from kdbench.system.files import open_own, write_atomically

METRICS_FILE = "metrics.jsonl"

Row = Mapping[str, float]


def lines(history: Sequence[Row]) -> bytes:
    """Return the file's content after these epochs."""
    return "".join(json.dumps(row) + "\n" for row in history).encode()


def rows_of(content: bytes) -> list[dict[str, float]]:
    """Return the rows of a file of metrics.

    Raises:
        KdbenchError: a line is not a mapping to numbers.
    """
    try:
        rows = [json.loads(line) for line in content.splitlines()]
        if all(isinstance(value, int | float) for row in rows for value in row.values()):
            return rows
    except (ValueError, AttributeError, RecursionError):
        pass
    raise KdbenchError(f"{METRICS_FILE} is not a file of metrics")


class RunLogger:
    """A listener to a run's events; this base class, `logger=none`, does nothing."""

    def open(self, identity: Identity, config: TrainSettings, folder: Path) -> None:
        """Take note that a run is about to train."""

    def start(self, history: Sequence[Row]) -> None:
        """Take note that training starts, or goes on after the epochs of `history`."""

    def epoch(self, row: Row) -> None:
        """Take the row of a finished epoch."""

    def record(self, record: Record) -> None:
        """Take the written record of a run that is done or has failed; its files are in place."""

    def finish(self, exit_code: int) -> None:
        """Take note that the run has ended; exit code 0 means done."""


class MetricsFile(RunLogger):
    """The file `metrics.jsonl`, one line per epoch; a resumed run rewrites its earlier epochs."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / METRICS_FILE

    def start(self, history: Sequence[Row]) -> None:
        """Write the finished epochs.

        Raises:
            WriteError: it cannot be written.
        """
        with writing(self._path):
            write_atomically(self._path, lines(history))

    def epoch(self, row: Row) -> None:
        """Append a finished epoch.

        Raises:
            WriteError: it cannot be written.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with writing(self._path), os.fdopen(open_own(self._path, flags), "ab") as file:
            file.write(lines([row]))
