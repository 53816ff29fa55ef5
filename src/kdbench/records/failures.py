"""What a run tells the launcher of its sweep while others of its cohort train on: a small file."""

import json
from contextlib import suppress
from pathlib import Path

from kdbench.errors import first_line
from kdbench.schema.secrets import masked
from kdbench.system.files import read_small, write_atomically

FILE = "failure.json"


def tell_failure(folder: Path, error: BaseException) -> None:
    """Say in a run's folder why it is out; a full disk keeps it from that and nothing else."""
    with suppress(OSError):
        content = json.dumps({"error": masked(first_line(error))}) + "\n"
        write_atomically(folder / FILE, content.encode())


def failure(folder: Path) -> str | None:
    """Why the run of a folder is out, once it says so."""
    try:
        error = json.loads(read_small(folder / FILE))["error"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return error if isinstance(error, str) else None


def forget_failure(folder: Path) -> None:
    """Remove what an earlier try has said."""
    with suppress(OSError):
        (folder / FILE).unlink(missing_ok=True)
