"""Sources of a split's encoded images: a file for each, or shards of many."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, Self

import numpy as np
from PIL import Image
from torch import Tensor

from kdbench.data.decoding.decode import Depth, read_rgb
from kdbench.errors import KdbenchError
from kdbench.system.files import open_regular

LARGEST_FILE = 2**30  # bytes of one image; 89 million pixels of 16 bits take less


class Source(Protocol):
    """A thread-safe source of encoded images by row."""

    @property
    def names(self) -> Sequence[str]:
        """The images' names with split and class; with `sizes` they identify a data set."""

    @property
    def sizes(self) -> Sequence[int]:
        """The images' sizes in bytes."""

    def where(self, row: int) -> str:
        """Return an image's name for error lines."""

    def encoded(self, row: int) -> bytes:
        """Return the content of the image's file.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no file, or too large for an image.
        """

    def ends(self, row: int, head: int, tail: int) -> tuple[bytes, bytes]:
        """Return the first and the last bytes of the image's file, at most `head` and `tail`.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no file.
        """

    def read(self, row: int) -> Image.Image:
        """Return the whole image, in RGB.

        Raises:
            Exception: nearly any, where it cannot be read; see `decode.naming`.
        """

    def select(self, rows: Sequence[int]) -> Self:
        """Return a source of some of the images."""


class Listing(NamedTuple):
    """The images of a split, class by class, and by name within a class."""

    source: Source
    labels: Tensor  # [N] int64


@dataclass(frozen=True)
class FolderSource:
    """A file for each image."""

    root: Path
    names: Sequence[str]  # with split and class, also where the files are not sorted so
    sizes: Sequence[int]
    files: Sequence[str]  # below the root
    depth: Depth = field(default_factory=Depth)

    def where(self, row: int) -> str:
        """Return the file's path."""
        return f"{self.root}/{self.files[row]}"

    def encoded(self, row: int) -> bytes:
        """Return the file's content."""
        with open_regular(self.where(row)) as file:
            return file.read(bounded(os.fstat(file.fileno()).st_size))

    def ends(self, row: int, head: int, tail: int) -> tuple[bytes, bytes]:
        """Return the ends of the file."""
        with open_regular(self.where(row)) as file:
            return ends_of(file, 0, os.fstat(file.fileno()).st_size, head, tail)

    def read(self, row: int) -> Image.Image:
        """Return the file's image; EXIF orientation is ignored, as by ImageFolder."""
        return read_rgb(self.where(row), lambda: self.depth.found(self.where(row)))

    def select(self, rows: Sequence[int]) -> "FolderSource":
        """Return a source of some of the files."""
        return replace(
            self,
            names=[self.names[row] for row in rows],
            sizes=[self.sizes[row] for row in rows],
            files=[self.files[row] for row in rows],
        )


@dataclass(frozen=True)
class ShardSource:
    """Pieces of larger files, each read with one seek."""

    files: Sequence[Path]
    names: Sequence[str]
    sizes: Sequence[int]  # bytes
    file: np.ndarray  # [N] int64, indices of files
    offset: np.ndarray  # [N] int64, in bytes
    depth: Depth = field(default_factory=Depth)

    def where(self, row: int) -> str:
        """Return the shard, and the image's name in it."""
        return f"{self.files[self.file[row]]}: {self.names[row].rpartition('/')[2]}"

    def read(self, row: int) -> Image.Image:
        """Return the image of a piece."""
        return read_rgb(self.encoded(row), lambda: self.depth.found(self.where(row)))

    def encoded(self, row: int) -> bytes:
        """Return the bytes of a piece.

        Raises:
            KdbenchError: the file ends before the piece.
        """
        with self._opened(row) as file:
            file.seek(int(self.offset[row]))
            return file.read(bounded(self.sizes[row]))

    def ends(self, row: int, head: int, tail: int) -> tuple[bytes, bytes]:
        """Return the ends of a piece."""
        with self._opened(row) as file:
            return ends_of(file, int(self.offset[row]), self.sizes[row], head, tail)

    def _opened(self, row: int) -> BinaryIO:
        path = self.files[self.file[row]]
        file = open_regular(path)  # not kept open, since there may be a thousand shards
        if os.fstat(file.fileno()).st_size < int(self.offset[row]) + self.sizes[row]:
            file.close()
            raise KdbenchError(f"{path} was cut off after its index was made: fetch it again")
        return file

    def select(self, rows: Sequence[int]) -> "ShardSource":
        """Return a source of some of the pieces."""
        at = np.asarray(rows, dtype=np.int64)
        return replace(
            self,
            names=[self.names[row] for row in rows],
            sizes=[self.sizes[row] for row in rows],
            file=self.file[at],
            offset=self.offset[at],
        )


def ends_of(file: BinaryIO, start: int, size: int, head: int, tail: int) -> tuple[bytes, bytes]:
    """Return the first and the last of `size` bytes from `start` on."""
    file.seek(start)
    first = file.read(min(head, size))
    file.seek(start + max(0, size - tail))
    return first, file.read(min(tail, size))


def bounded(size: int) -> int:
    """Check the size of an image's file in bytes, before allocation.

    Raises:
        ValueError: it is too large for one image.
    """
    if size > LARGEST_FILE:
        raise ValueError(f"it has more than {LARGEST_FILE >> 20} MiB")
    return size
