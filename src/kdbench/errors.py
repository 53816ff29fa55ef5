"""Errors that a user can mend: each is one line that says what is wrong and how to mend it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

SHOWN = 40  # names in one error line; timm alone has over a thousand


class KdbenchError(Exception):
    """Something outside the program is wrong (a file, a checkpoint, a device); exit code 1."""

    exit_code = 1


class ConfigError(KdbenchError):
    """The command or a configuration file is wrong; exit code 2."""

    exit_code = 2


class WriteError(KdbenchError):
    """A file of a run cannot be written; what was written before is unharmed."""


class HeldError(KdbenchError):
    """Another process trains the run; nothing was changed."""


class RankError(KdbenchError):
    """Something is wrong on one rank alone, or with its connection; it ends the process."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of writing a run's file, or a file in its folder, into one line.

    Raises:
        WriteError: replaces an OSError.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"cannot write {path} ({error.strerror or error}): make room or let it be written; the "
            "same command then goes on from the last checkpoint"
        ) from None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its type where there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the end of an error line: the valid name nearest to `name`, or else all of them."""
    names = sorted(valid)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    if not names:
        return "there is none to choose from"
    more = ", ..." if len(names) > SHOWN else ""
    return f"choose from {', '.join(names[:SHOWN])}{more}"


class Interrupted(KeyboardInterrupt):
    """A run was stopped at a step boundary, with checkpoints written."""


class DivergedError(KdbenchError):
    """A run's numbers are not finite; the last checkpoint before them is kept."""

    def __init__(
        self, run_id: str, epoch: int, step: int, what: str, teachers: Sequence[str] = ()
    ) -> None:
        line = f"{run_id} diverged in epoch {epoch}: {what} is not finite"
        if teachers:  # their outputs were not finite
            names = " and ".join(teachers)
            line += f", for outputs of teacher {names} are not: take another file or precision"
        else:
            line += "; lower schedule.lr or the method's weights"
        super().__init__(line)
        self.step = step  # over all epochs, from 1
