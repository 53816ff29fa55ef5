"""Room on a disk, asked for before something large is written."""

import shutil
from pathlib import Path

from kdbench.errors import KdbenchError


def free_bytes(folder: Path) -> int:
    """Free space on the disk that holds the folder, or would."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def check_room(folder: Path, needed: int, what: str, remedy: str) -> None:
    """Notice a disk that is too small before anything is written.

    Args:
        folder: where it will be; it need not exist yet.
        needed: bytes.
        what: what needs them, and `remedy`: how else the run can go on; both for the message.

    Raises:
        KdbenchError: the disk has less.
    """
    free = free_bytes(folder)
    if free < needed:
        raise KdbenchError(
            f"{what} needs {_size(needed)} in {folder}, which has {_size(free)}: {remedy}"
        )


def _size(count: int) -> str:
    """Bytes as people say them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
