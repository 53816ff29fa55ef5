"""Other processes, as /proc knows them; waiting for what they do, ports on which they meet."""

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

PATIENCE = 240.0  # seconds; a loaded machine takes long to import torch


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


def started_with(setting: str, module: str) -> list[int]:
    """The processes that run a module, with a variable in their environment ("NAME=VALUE")."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # another user's, or it has just ended
            if setting.encode() in path.read_bytes().split(b"\0"):
                pid = int(path.parent.name)
                found += [pid] * (module in command_of(pid))
    return found


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


def wait_until(
    happens: Callable[[], object], fails: Callable[[], str | None] = lambda: None
) -> None:
    """Return as soon as `happens` is true.

    Args:
        happens: looked at again and again.
        fails: says why it will never be, as soon as that is known.

    Raises:
        RuntimeError: it will never be, or has not been for `PATIENCE` seconds.
    """
    until = time.monotonic() + PATIENCE
    while not happens():
        why = fails() if time.monotonic() < until else "it has not happened"
        if why is not None:
            raise RuntimeError(why)
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
