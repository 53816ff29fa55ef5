"""Where metrics go: the local file is the truth, Weights & Biases mirrors it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import wandb

from kdbench.console import Console
from kdbench.record import Identity, Record

METRICS_FILE = "metrics.jsonl"

Row = Mapping[str, float]


class RunLogger:
    """What the loop tells while it trains; as it stands, `logger=none`, it does nothing."""

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> None:
        """A run is about to train."""

    def start(self, history: Sequence[Row]) -> None:
        """Training starts, or goes on after the epochs of `history`."""

    def epoch(self, row: Row) -> None:
        """An epoch is finished."""

    def record(self, record: Record) -> None:
        """The run is done, with this result; `finish` follows."""

    def finish(self, exit_code: int) -> None:
        """The run has ended; 0 is done."""


class MetricsFile(RunLogger):
    """`metrics.jsonl`, one line a finished epoch; a resumed run rewrites what it stands on."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / METRICS_FILE

    def start(self, history: Sequence[Row]) -> None:
        """Write the finished epochs."""
        self._path.write_text("".join(json.dumps(row) + "\n" for row in history))

    def epoch(self, row: Row) -> None:
        """Append one."""
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


class WandbLogger(RunLogger):
    """`logger=wandb`: one W&B run a run, grouped by cell.

    Offline by default: `wandb sync` sends the folder later. A failure of W&B is reported once and
    never touches the training.
    """

    def __init__(
        self,
        project: str = "kdbench",
        entity: str | None = None,
        mode: Literal["offline", "online"] = "offline",
    ) -> None:
        self._project, self._entity, self._mode = project, entity, mode
        self._run: wandb.Run | None = None

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> None:
        """Start the W&B run under the run's own id."""
        try:
            self._run = wandb.init(
                project=self._project,
                entity=self._entity,
                mode=self._mode,
                id=identity.run_id,
                name=identity.run_id,
                group=identity.cell,
                job_type="distil" if config["teacher"] else "train",
                config={**config, "hash": identity.hash},
                dir=folder,
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off"),
            )
            self._run.define_metric("epoch")
            self._run.define_metric("*", step_metric="epoch")
            self._run.define_metric("test/top1", step_metric="epoch", summary="last,max")
        except Exception as error:
            self._give_up(error)

    def start(self, history: Sequence[Row]) -> None:
        """Repeat the finished epochs, so that the history is whole after a resume."""
        for row in history:
            self.epoch(row)

    def epoch(self, row: Row) -> None:
        """Log one epoch."""
        if self._run is not None:
            try:
                self._run.log(dict(row))
            except Exception as error:
                self._give_up(error)

    def finish(self, exit_code: int) -> None:
        """Close the W&B run."""
        if self._run is not None:
            try:
                self._run.finish(exit_code=exit_code)
            except Exception as error:
                self._give_up(error)
            self._run = None

    def _give_up(self, error: Exception) -> None:
        self._run = None
        Console().message(f"Weights & Biases failed, training goes on without it: {error}")
