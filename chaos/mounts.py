"""Small disks and read-only ones, where this machine lets them be mounted."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NotAllowedError(Exception):
    """Nothing can be mounted here."""


def mount(*arguments: object) -> None:
    """`mount`, as root.

    Raises:
        NotAllowedError: it is refused.
    """
    try:
        words = ["mount", *map(str, arguments)]
        subprocess.run(words, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise NotAllowedError(f"mount: {said.strip().splitlines()[0]}") from None


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    """A disk of that size at the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder)
    try:
        yield
    finally:
        unmount(folder)


def grow(folder: Path, kib: int) -> None:
    """Another size for a small disk."""
    mount("-o", f"remount,size={kib}k", folder)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder cannot be written; what is open for writing stays so."""
    mount("--bind", folder, folder)
    try:
        mount("-o", "remount,bind,ro", folder)
        yield
    finally:
        unmount(folder)


def unmount(folder: Path) -> None:
    """End a mount, once nobody uses it any more."""
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
