"""Free space on a disk, checked before something large is written."""

import shutil
from pathlib import Path

from kdbench.errors import KdbenchError


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk that holds the folder, or will hold it."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def check_room(folder: Path, needed: int, what: str, remedy: str) -> None:
    """Refuse a disk that is too small, before anything is written.

    Args:
        folder: the folder to be written; it need not exist yet.
        needed: the bytes that it needs.
        what: the thing that needs them, for the message.
        remedy: another way for the run to go on, for the message.

    Raises:
        KdbenchError: the disk has less free space.
    """
    free = free_bytes(folder)
    if free < needed:
        raise KdbenchError(
            f"{what} needs {_size(needed)} in {folder}, which has {_size(free)}: {remedy}"
        )


def _size(count: int) -> str:
    """Return a number of bytes in a readable unit."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
