"""A small file by which a failed run tells its sweep's launcher, while its cohort trains on."""

import json
from contextlib import suppress
from pathlib import Path

from kdbench.errors import first_line
from kdbench.schema.secrets import masked
from kdbench.system.files import read_small, write_atomically

FILE = "failure.json"


def tell_failure(folder: Path, error: BaseException) -> None:
    """Write the reason of a run's failure to its folder; on a full disk, do nothing."""
    with suppress(OSError):
        content = json.dumps({"error": masked(first_line(error))}) + "\n"
        write_atomically(folder / FILE, content.encode())


def failure(folder: Path) -> str | None:
    """Return the reason of the failure of a folder's run, if it has failed."""
    try:
        error = json.loads(read_small(folder / FILE))["error"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return error if isinstance(error, str) else None


def forget_failure(folder: Path) -> None:
    """Remove the failure of an earlier try."""
    with suppress(OSError):
        (folder / FILE).unlink(missing_ok=True)
