"""Notices of a run while it trains: a file in its folder with a line of JSON each.

A sweep's launcher reads the file and shows its lines, since the sweep's processes write to logs.
"""

import json
import os
from pathlib import Path

from kdbench.errors import writing
from kdbench.system.files import open_own, read_small

EVENTS_FILE = "events.jsonl"


def tell(folder: Path, text: str) -> None:
    """Add a line for the user, once.

    Raises:
        WriteError: it cannot be written.
    """
    if text in told(folder):
        return
    path, flags = folder / EVENTS_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with writing(folder), os.fdopen(open_own(path, flags), "a") as file:
        file.write(json.dumps({"notice": text}) + "\n")


def told(folder: Path) -> list[str]:
    """Return the complete lines so far."""
    try:
        content = read_small(folder / EVENTS_FILE)
    except (OSError, ValueError):
        return []
    whole = content.decode(errors="replace").rpartition("\n")[0].splitlines()
    found = []
    for line in whole:
        try:
            found.append(str(json.loads(line)["notice"]))
        except (ValueError, KeyError, TypeError):  # the writer was killed meanwhile
            continue
    return found
