"""Runs that are killed at a chosen step."""

import kdbench.errors
import kdbench.records.weights
import kdbench.system.files
import kdbench.teachers.output_cache
import kdbench.tracking.run_logger
import kdbench.training.member


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
