"""Where the encoded images of a split lie: each in a file of its own, or many in a shard."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import numpy as np
from PIL import Image
from torch import Tensor

from kdbench.data.decoding.decode import read_rgb
from kdbench.errors import KdbenchError


class Source(Protocol):
    """Encoded images by row; any thread may ask."""

    @property
    def names(self) -> Sequence[str]:
        """Of each image, with its split and class: a data set is known by them and by `sizes`."""

    @property
    def sizes(self) -> Sequence[int]:
        """Of each image, in bytes."""

    def where(self, row: int) -> str:
        """What an error line calls an image."""

    def encoded(self, row: int) -> bytes:
        """The image's file.

        Raises:
            OSError: it cannot be read.
        """

    def read(self, row: int) -> Image.Image:
        """The whole image, in RGB.

        Raises:
            Exception: nearly any, where it cannot be read; see `decode.naming`.
        """

    def select(self, rows: Sequence[int]) -> Self:
        """Some of the images."""


class Listing(NamedTuple):
    """A split as it is found: class by class, and a class's images in the order of their names."""

    source: Source
    labels: Tensor  # [N] int64


@dataclass(frozen=True)
class FolderSource:
    """A file for each image."""

    root: Path
    names: Sequence[str]  # below the root
    sizes: Sequence[int]

    def where(self, row: int) -> str:
        """The file's path."""
        return f"{self.root}/{self.names[row]}"

    def encoded(self, row: int) -> bytes:
        """The file."""
        return Path(self.where(row)).read_bytes()

    def read(self, row: int) -> Image.Image:
        """Its image; what EXIF says of its orientation is ignored, as by ImageFolder."""
        return read_rgb(self.where(row))

    def select(self, rows: Sequence[int]) -> "FolderSource":
        """Some of the files."""
        return replace(
            self, names=[self.names[row] for row in rows], sizes=[self.sizes[row] for row in rows]
        )


@dataclass(frozen=True)
class ShardSource:
    """Pieces of larger files, each read with one seek."""

    files: Sequence[Path]
    names: Sequence[str]
    sizes: Sequence[int]  # bytes
    file: np.ndarray  # [N] int64, which of the files
    offset: np.ndarray  # [N] int64, in bytes

    def where(self, row: int) -> str:
        """The shard and the name in it."""
        return f"{self.files[self.file[row]]}: {self.names[row].rpartition('/')[2]}"

    def read(self, row: int) -> Image.Image:
        """The image of a piece."""
        return read_rgb(self.encoded(row))

    def encoded(self, row: int) -> bytes:
        """A piece.

        Raises:
            KdbenchError: the file ends before it.
        """
        path, size = self.files[self.file[row]], self.sizes[row]
        with path.open("rb", buffering=0) as file:  # open: a thousand shards are too many to hold
            file.seek(int(self.offset[row]))
            content = file.read(size)
        if len(content) != size:
            raise KdbenchError(f"{path} was cut off after its index was made: fetch it again")
        return content

    def select(self, rows: Sequence[int]) -> "ShardSource":
        """Some of the pieces."""
        at = np.asarray(rows, dtype=np.int64)
        return ShardSource(
            self.files,
            [self.names[row] for row in rows],
            [self.sizes[row] for row in rows],
            self.file[at],
            self.offset[at],
        )
