"""Other processes, as /proc knows them."""

import os
import signal
from contextlib import suppress
from pathlib import Path


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are still there."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it has just ended
            found += map(int, thread.read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """A process's children, theirs, and so on."""
    found = children(pid)
    for child in list(found):
        found += descendants(child)
    return found


def command_of(pid: int) -> str:
    """The command line of a process; nothing once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def workers(launcher: int) -> list[int]:
    """The processes that train for a launcher."""
    return [pid for pid in children(launcher) if "kdbench.sweeps.worker" in command_of(pid)]


def alive(pid: int) -> bool:
    """Return whether a process still runs."""
    return bool(command_of(pid))


def kill(pid: int) -> None:
    """`kill -9`, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def memory(pid: int) -> tuple[float, int]:
    """MiB that a process holds, and its open files; 0, 0 once it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0.0, 0
