"""Runs that are killed at a chosen step."""

from collections.abc import Callable

import pytest

import kdbench.errors
import kdbench.records.weights
import kdbench.system.files
import kdbench.teachers.output_cache
import kdbench.tracking.run_logger
import kdbench.training.member
from kdbench.records.checkpoint import checkpoint_paths
from kdbench.sweeps.local import Ended, Worker


class Killed(BaseException):
    """In place of kill -9: nothing that handles exceptions may handle it."""


def at_step(number: int, act, monkeypatch) -> None:
    """Call `act` while step `number` (from 1, over all members) is under way."""
    original, count = kdbench.training.member.train_step, 0

    def counted(*arguments):
        nonlocal count
        count += 1
        if count == number:
            act()
        return original(*arguments)

    monkeypatch.setattr(kdbench.training.member, "train_step", counted)


def kill() -> None:
    raise Killed


def at_first_checkpoint(monkeypatch: pytest.MonkeyPatch, act: Callable[[Worker], None]) -> None:
    """Act once, as soon as the launcher could see that the cohort has written checkpoints."""
    acted = []

    def ended(worker: Worker) -> Ended | None:
        folders = [job.folder for job in worker.task.jobs]
        if not acted and all(checkpoint_paths(folder) for folder in folders):
            acted.append(True)
            act(worker)
        return original(worker)

    original = Worker.ended
    monkeypatch.setattr(Worker, "ended", ended)
