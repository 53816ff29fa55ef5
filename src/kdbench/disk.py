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
            f"{what} needs {needed / 1e9:.1f} GB in {folder}, which has {free / 1e9:.1f} GB: "
            f"{remedy}"
        )
