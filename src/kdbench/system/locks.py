"""A lock for each run, which the kernel releases however its process ends."""

import errno
import fcntl
import os
import socket
from pathlib import Path

from kdbench.errors import HeldError
from kdbench.system.files import open_own

LOCK_FILE = ".lock"
# Some network file systems cannot lock; the run then trains without a lock.
UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}


class RunLock:
    """The right to train a run, held until `release` or the end of the process.

    The file stays, since removing it would let two processes lock two files of one name; it names
    the last holder.

    Raises:
        HeldError: another process holds it; nothing was changed.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK_FILE
        self._file = open_own(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 1000, 0).decode(errors="replace").strip()
            os.close(self._file)
            if error.errno in UNSUPPORTED:
                self._file = -1
                return
            if not isinstance(error, BlockingIOError):
                raise
            raise HeldError(
                f"{folder.name} is being trained by {holder or 'another process'}: wait for it, or "
                "stop it and try again"
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Let another process train the run."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
