"""The images of a split, decoded by threads from files or shards.

As many threads decode as torch computes with (`runtime.threads`). Pillow decodes and scales without
holding the interpreter's lock.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdbench.data.decoding.decode import naming, squared
from kdbench.data.streaming.placeholders import Placeholders
from kdbench.data.streaming.sources import Source
from kdbench.errors import KdbenchError

Found = TypeVar("Found")


class ImageFiles:
    """The images of a split; slices and indices return unaugmented images as uint8 tensors.

    An instance takes the place of the tensor [N, 3, S, S] of a data set in memory. Images are
    scaled and cropped as torchvision's Resize and CenterCrop do on PIL images.
    """

    def __init__(
        self, source: Source, resize: int, image_size: int, placeholders: Placeholders | None = None
    ) -> None:
        self.source, self.placeholders = source, placeholders
        self.resize, self.image_size = resize, image_size
        self._ahead: dict[tuple[int, int], Decoding] = {}

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.source.names)

    @property
    def shape(self) -> torch.Size:
        """[N, 3, S, S]."""
        return torch.Size((len(self), 3, self.image_size, self.image_size))

    def narrow(self, dim: int, start: int, length: int) -> "ImageFiles":
        """Return `length` images from `start` on; `dim` is 0, as for a tensor."""
        rows = range(start, start + length)
        source, placeholders = self.source.select(rows), None
        if self.placeholders is not None:
            placeholders = Placeholders(source, self.placeholders.labels.narrow(0, start, length))
        return ImageFiles(source, self.resize, self.image_size, placeholders)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Return the images at `rows`; after a slice the next one is decoded in the background."""
        if isinstance(rows, Tensor):
            return self._begin(rows.tolist()).wait()
        start, stop, _ = rows.indices(len(self))
        found = self._ahead.pop((start, stop), None) or self._begin(range(start, stop))
        following = range(stop, min(2 * stop - start, len(self)))
        self._ahead = {(stop, following.stop): self._begin(following)} if following else {}
        return found.wait()

    def _begin(self, rows: Sequence[int]) -> "Decoding":
        def work(place: int, out: np.ndarray) -> None:
            out[:] = squared(self.read(rows[place]), self.resize, self.image_size)

        where = [self.source.where(row) for row in rows]
        return Decoding(work, where, self.image_size, pinned=False)

    def read(self, row: int) -> Image.Image:
        """Return the whole image in RGB, or its placeholder where it cannot be read.

        Raises:
            Exception: nearly any, where it cannot be read and not be replaced; see `naming`.
        """
        return self.source.read(row) if self.placeholders is None else self.placeholders.read(row)


class Decoding:
    """Images on their way into one tensor [n, 3, S, S].

    Raises:
        KdbenchError: the system cannot start a thread.
    """

    def __init__(
        self,
        work: Callable[[int, np.ndarray], None],  # writes image i into its place [3, S, S]
        names: Sequence[str],  # for error lines
        size: int,
        pinned: bool,
    ) -> None:
        self.images = torch.empty(len(names), 3, size, size, dtype=torch.uint8, pin_memory=pinned)
        pixels = self.images.numpy()  # a worker's copy by torch would start threads of its own

        def named(place: int) -> None:
            with naming(names[place]):
                work(place, pixels[place])

        self.waiting: list[Future[None]] = begun(named, len(names))

    def wait(self) -> Tensor:
        """Wait for the images, and return them all decoded.

        Raises:
            KdbenchError: an image cannot be read; the first in order is named.
        """
        try:
            for future in self.waiting:
                future.result()
        finally:
            self.cancel()
        return self.images

    def cancel(self) -> None:
        """Cancel the images that are not being decoded yet."""
        for future in self.waiting:
            future.cancel()


def begun(work: Callable[[int], Found], count: int) -> list[Future[Found]]:
    """Start `work` of 0 to `count` - 1 on the decoding threads.

    Raises:
        KdbenchError: the system cannot start a thread.
    """
    pool = threads(torch.get_num_threads())
    try:
        return [pool.submit(work, place) for place in range(count)]
    except RuntimeError as error:
        raise KdbenchError(
            f"the threads that decode images cannot be started ({error}): lower "
            "runtime.threads, or raise the limit of processes"
        ) from None


@cache
def threads(count: int) -> ThreadPoolExecutor:
    """Return the decoding threads of this process."""
    return ThreadPoolExecutor(count, "decode")
