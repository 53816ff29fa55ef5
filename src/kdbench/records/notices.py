"""What a run tells beside its results while it trains: a file of its folder, a line of JSON each.

The launcher of a sweep reads it, whose processes write to logs that nobody looks at.
"""

import json
import os
from pathlib import Path

from kdbench.errors import writing
from kdbench.system.files import open_own, read_small

EVENTS_FILE = "events.jsonl"


def tell(folder: Path, text: str) -> None:
    """Add a line that a user should see, once.

    Raises:
        WriteError: it cannot be written.
    """
    if text in told(folder):
        return
    path, flags = folder / EVENTS_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with writing(folder), os.fdopen(open_own(path, flags), "a") as file:
        file.write(json.dumps({"notice": text}) + "\n")


def told(folder: Path) -> list[str]:
    """The lines so far, whole ones only."""
    try:
        content = read_small(folder / EVENTS_FILE)
    except (OSError, ValueError):
        return []
    whole = content.decode(errors="replace").rpartition("\n")[0].splitlines()
    found = []
    for line in whole:
        try:
            found.append(str(json.loads(line)["notice"]))
        except (ValueError, KeyError, TypeError):  # of a process that was killed while it wrote
            continue
    return found
