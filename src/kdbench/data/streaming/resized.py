"""Training images as pixels, scaled down once, in files that are mapped into memory.

Training then decodes nothing. A crop of a smaller image differs from the same
crop of the original, so this changes results.
"""

import math
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from kdbench.data.decoding.decode import naming
from kdbench.data.layout import check_file
from kdbench.data.streaming.image_files import threads
from kdbench.data.streaming.placeholders import of_the_image
from kdbench.data.streaming.shards import OTHER_FOLDER, held
from kdbench.data.streaming.sources import Source
from kdbench.errors import KdbenchError, writing
from kdbench.system.console import Console
from kdbench.system.disk import check_room
from kdbench.system.files import TEMPORARY

FORMAT = 1
PART = 10_000  # images a file, which an interruption loses at most
GROUP = 256  # images decoded before they are written
RATIO = 4 / 3  # approximate width to height, to estimate the disk space


@dataclass(frozen=True)
class ResizedSource:
    """Pixels in mapped files; the names and sizes are those of the originals."""

    original: Source
    parts: Sequence[np.ndarray]  # uint8 [bytes]
    part: np.ndarray  # [N] int64, indices into `parts`
    offset: np.ndarray  # [N] int64
    shape: np.ndarray  # [N, 2] int64, height and width; 0 where it could not be read

    @property
    def names(self) -> Sequence[str]:
        """Those of the originals."""
        return self.original.names

    @property
    def sizes(self) -> Sequence[int]:
        """Those of the originals."""
        return self.original.sizes

    def where(self, row: int) -> str:
        """Return the original's."""
        return self.original.where(row)

    def encoded(self, row: int) -> bytes:
        """Return the original's."""
        return self.original.encoded(row)

    def ends(self, row: int, head: int, tail: int) -> tuple[bytes, bytes]:
        """Return the original's."""
        return self.original.ends(row, head, tail)

    def read(self, row: int) -> Image.Image:
        """Return the image, scaled down.

        Raises:
            ValueError: the original could not be read.
        """
        height, width = self.shape[row].tolist()
        if height == 0:
            raise ValueError("it was no image when it was to be scaled down")
        start = int(self.offset[row])
        pixels = self.parts[self.part[row]][start : start + 3 * height * width]
        if len(pixels) != 3 * height * width:  # checked before allocation
            raise ValueError("its copy in dataset.cache_dir is damaged, which is to be removed")
        return Image.frombytes("RGB", (width, height), pixels.tobytes())

    def select(self, rows: Sequence[int]) -> "ResizedSource":
        """Return a source of some of the images."""
        at = np.asarray(rows, dtype=np.int64)
        few = self.part[at], self.offset[at], self.shape[at]
        return ResizedSource(self.original.select(rows), self.parts, *few)


def resized_source(source: Source, shorter: int, cache_dir: Path, skip: bool) -> ResizedSource:
    """Return the images with their shorter side scaled to `shorter`, from the cache or made now.

    torchvision's Resize scales them (bilinear, antialiased); smaller images are kept.

    Raises:
        KdbenchError: an image cannot be read, without `skip`, the disk is too small, or
            the cache cannot be written.
    """
    digest = sha256(f"{FORMAT} {shorter}\n".encode())
    for name, size in zip(source.names, source.sizes, strict=True):
        digest.update(os.fsencode(f"{name} {size}\n"))  # a name need not be UTF-8
    folder = cache_dir / f"{shorter}px-{digest.hexdigest()[:16]}"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    count = len(source.names)
    starts = range(0, count, PART)
    paths = [folder / f"part-{number:05d}.rgb" for number in range(len(starts))]
    with held(folder):
        missing = [not path.exists() for path in paths]
        if any(missing):
            left = min(count, PART * sum(missing))
            needed = int(3 * RATIO * shorter**2 * left)
            check_room(folder, needed, "a copy of the images", OTHER_FOLDER)
            Console().message(
                f"scaling {left:,} images to {shorter} pixels into {folder}, once: some "
                f"{needed / 2**30:.3g} GiB"
            )
        for start, path in zip(starts, paths, strict=True):
            if not path.exists():
                write_part(path, source, range(start, min(start + PART, count)), shorter, skip)
    return mapped(source, paths)


def mapped(source: Source, paths: Sequence[Path]) -> ResizedSource:
    """Map the parts, each of which begins with its images' heights and widths.

    Raises:
        KdbenchError: a part is no file, or damaged.
    """
    parts, shapes, offsets, numbers = [], [], [], []
    for number, path in enumerate(paths):
        rows = min(PART, len(source.names) - number * PART)
        part, shape = opened(path, rows)
        ends = 16 * rows + np.cumsum(3 * shape.prod(axis=1))
        parts.append(part)
        shapes.append(np.array(shape))
        offsets.append(ends - 3 * shape.prod(axis=1))
        numbers.append(np.full(rows, number))
    return ResizedSource(source, parts, *map(np.concatenate, (numbers, offsets, shapes)))


def opened(path: Path, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Open a part: its bytes, and the heights and widths of its images.

    Raises:
        KdbenchError: it is no file, or its size differs from its header's.
    """
    check_file(path)
    size = path.stat().st_size
    if size >= 16 * rows:
        part = np.memmap(path, dtype=np.uint8, mode="r")
        shape = part[: 16 * rows].view(np.int64).reshape(rows, 2)
        if 16 * rows + 3 * shape.prod(axis=1).sum() == size:
            return part, shape
    raise KdbenchError(f"{path} is damaged: remove it, and it is made anew")


def write_part(path: Path, source: Source, rows: range, shorter: int, skip: bool) -> None:
    """Write some of the images, whole or not at all.

    Raises:
        KdbenchError: an image cannot be read, without `skip`, or the part cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}{TEMPORARY}")
    shapes = np.zeros((len(rows), 2), dtype=np.int64)
    try:
        with writing(path), temporary.open("xb") as file:
            file.write(shapes.tobytes())  # reserved, and filled in at the end
            for place, image in enumerate(scaled(source, rows, shorter, skip)):
                if image is not None:
                    shapes[place] = image.height, image.width
                    file.write(image.tobytes())
            file.seek(0)
            file.write(shapes.tobytes())
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def scaled(source: Source, rows: range, shorter: int, skip: bool) -> Iterator[Image.Image | None]:
    """Yield the images in order, scaled down; None for an unreadable one that is skipped."""

    def work(row: int) -> Image.Image | None:
        with naming(source.where(row)):
            try:
                image = source.read(row)
            except Exception as error:
                if skip and of_the_image(error):
                    return None
                raise
            return TF.resize(image, [shorter]) if min(image.size) > shorter else image

    pool = threads(torch.get_num_threads())
    for number in range(math.ceil(len(rows) / GROUP)):
        yield from pool.map(work, rows[number * GROUP : (number + 1) * GROUP])
