"""Writing a file whole or not at all."""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from kdbench.errors import KdbenchError

LARGEST = 2**24  # bytes of a record, or of a run's metrics; honest ones have some thousands
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


def read_small(path: Path) -> bytes:
    """A file that others may have made: a pipe would not end, a device neither.

    Raises:
        ValueError: it is not a regular file, or has more than `LARGEST` bytes.
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"more than {LARGEST} bytes")
    return content


def open_regular(path: Path | str) -> BinaryIO:
    """Open a file to read it; a pipe, a socket or a device is never opened, a folder neither.

    Raises:
        ValueError: it is not a regular file.
        OSError: it cannot be opened.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a regular file")
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # if a pipe took its place, it is no wait
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("not a regular file")
    return os.fdopen(descriptor, "rb")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a writer that was killed; nobody may be writing there now."""
    for path in folder.glob(f"*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make the folder of runs, before anything else takes time.

    Raises:
        KdbenchError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have been quicker
    except OSError as error:
        raise KdbenchError(
            f"cannot write to {folder} ({error.strerror}): set runs_dir=DIR to a folder that can "
            "be written"
        ) from None
