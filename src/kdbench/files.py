"""Writing a file whole or not at all."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

TEMPORARY = ".tmp"  # how a file's name ends until it is whole


def write_atomically(path: Path, content: bytes) -> None:
    """Write through a temporary file, fsync and rename; a reader sees the old file or the new.

    Two writers of one path have a temporary file each, so that one of them wins whole.

    Raises:
        OSError: it cannot be written; whatever was there before is still there, and nothing else.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}{TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself survives a power cut
    finally:
        os.close(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a writer that was killed; nobody may be writing there now."""
    for path in folder.glob(f"*{TEMPORARY}"):
        path.unlink(missing_ok=True)
