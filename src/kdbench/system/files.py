"""Writing a file whole or not at all."""

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from kdbench.errors import KdbenchError

LARGEST = 2**24  # bytes of a record, or of a run's metrics; real ones have some thousands
TEMPORARY = ".tmp"  # ending of a file's name until the file is whole


def write_atomically(path: Path, content: bytes) -> None:
    """Write through a temporary file, fsync and rename; a reader sees the old file or the new.

    Two writers of one path have a temporary file each, so that the result is one of theirs, whole.

    Raises:
        OSError: the file cannot be written; the previous file is unchanged, and nothing is left.
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
        os.fsync(folder)  # makes the rename itself survive a power cut
    finally:
        os.close(folder)


def open_own(path: Path, flags: int, mode: int = 0o666) -> int:
    """Open a regular file of kdbench's own, following no link and waiting for no pipe.

    Raises:
        OSError: it is something else, or cannot be opened.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def read_small(path: Path) -> bytes:
    """Read a file that others may have made, but no pipe or device, which may have no end.

    Raises:
        ValueError: it is not a regular file, or has more than `LARGEST` bytes.
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # it was replaced meanwhile
            raise ValueError("not a regular file")
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"more than {LARGEST} bytes")
    return content


def open_regular(path: Path | str) -> BinaryIO:
    """Open a regular file for reading; never a pipe, a socket, a device or a folder.

    Raises:
        ValueError: it is not a regular file.
        OSError: it cannot be opened.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a regular file")
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # does not wait if a pipe took its place
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("not a regular file")
    return os.fdopen(descriptor, "rb")


def named_path(name: str) -> Path:
    """The path that a user names; unlike `Path.expanduser`, it leaves a "~user" that nobody is."""
    return Path(os.path.expanduser(name))


def same_file(file: BinaryIO) -> str:
    """A path of a file that is open, for libraries that open paths: no other takes its place."""
    return f"/dev/fd/{file.fileno()}"


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a killed writer; no other process may be writing there."""
    for path in folder.glob(f"*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make the folder of runs, before any slow work.

    Raises:
        KdbenchError: it cannot be written.
    """
    try:
        folder.mkdir(0o755, parents=True, exist_ok=True)
        probe = folder / f".writable.{secrets.token_hex(6)}{TEMPORARY}"
        os.close(open_own(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        probe.unlink()
    except OSError as error:
        raise KdbenchError(
            f"cannot write to {folder} ({error.strerror}): set runs_dir=DIR to a folder that can "
            "be written"
        ) from None
    check_kept(folder)


def check_kept(folder: Path) -> None:
    """Refuse a folder in which other users can replace our folders by theirs.

    Raises:
        KdbenchError: others can write to the folder, and it has no sticky bit.
    """
    mode = folder.stat().st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
        raise KdbenchError(
            f"other users can replace what is in {folder}: chmod go-w {folder}, or where several "
            f"people train, chmod +t {folder}"
        )


def own_folder(folder: Path, mode: int = 0o755) -> Path:
    """Make a folder, or accept an existing one that belongs to, and is written by, this user alone.

    Raises:
        KdbenchError: it is a link, another user's, or others can write to it.
        OSError: it cannot be made.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode):
        raise KdbenchError(f"{folder} is no folder but a link or a file: remove it")
    if facts.st_uid != os.geteuid():
        raise KdbenchError(f"{folder} is another user's: set runs_dir=DIR to a folder of your own")
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise KdbenchError(
            f"other users can write to {folder}: look at what is in it, then chmod go-w {folder}"
        )
    return folder
