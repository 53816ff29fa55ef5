"""Where metrics go: the local file is the truth, a logger mirrors it."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.errors import writing
from kdbench.records.identity import Identity
from kdbench.records.record import Record
from kdbench.system.files import open_own, write_atomically

METRICS_FILE = "metrics.jsonl"

Row = Mapping[str, float]


def lines(history: Sequence[Row]) -> bytes:
    """What the file holds after these epochs."""
    return "".join(json.dumps(row) + "\n" for row in history).encode()


class RunLogger:
    """What the loop tells while it trains; as it stands, `logger=none`, it does nothing."""

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> None:
        """A run is about to train."""

    def start(self, history: Sequence[Row]) -> None:
        """Training starts, or goes on after the epochs of `history`."""

    def epoch(self, row: Row) -> None:
        """An epoch is finished."""

    def record(self, record: Record) -> None:
        """The record is written, of a run that is done or has failed; its files are in place."""

    def finish(self, exit_code: int) -> None:
        """The run has ended; 0 is done."""


class MetricsFile(RunLogger):
    """`metrics.jsonl`, one line a finished epoch; a resumed run rewrites what it stands on."""

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
        """Append one.

        Raises:
            WriteError: it cannot be written.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with writing(self._path), os.fdopen(open_own(self._path, flags), "ab") as file:
            file.write(lines([row]))
