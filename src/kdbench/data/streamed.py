"""Image files decoded as they are needed, for sets that do not fit into memory.

A batch is decoded by threads, as many as torch computes with (`runtime.threads`), some batches
ahead of the step that reads it. Pillow decodes and scales without holding the interpreter's lock.
What a view looks like follows from its number alone, so an epoch is the same with any number of
threads and after every resume.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdbench.data.base import Dataset, Split
from kdbench.data.decode import naming, read_rgb, squared
from kdbench.data.views import CONTINUUM, CutViews, TrainImages, constants_on, normalise_with

AHEAD = 3  # batches that are decoded while one is trained on
TRIES = 10  # of RandomResizedCrop, before it takes the centre
SCALE = (0.08, 1.0)  # of the area: RandomResizedCrop's defaults, torchvision's reference recipe
RATIO = (3 / 4, 4 / 3)  # of width to height


class Box(NamedTuple):
    """A crop of an image in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


@dataclass(frozen=True)
class ResizedCrops:
    """RandomResizedCrop and RandomHorizontalFlip: crops of any size and place.

    A view's number keys a counter-based generator of its own. Its words are: the flip, area and
    ratio of each try, row and column. A fraction is the upper 53 bits of its word.
    """

    finite: ClassVar[bool] = False
    pad: ClassVar[int] = 0
    count: ClassVar[int] = CONTINUUM
    flip: bool

    def box(self, view: int, height: int, width: int) -> Box:
        """The crop of a view out of an image of this size; torchvision's rule."""
        words = np.random.Philox(key=view).random_raw(2 * TRIES + 3)
        flip = self.flip and bool(words[0] & np.uint64(1))
        fractions = ((words[1:] >> np.uint64(11)) * 2.0**-53).tolist()
        row, column = fractions[-2:]
        low, high = (math.log(ratio) for ratio in RATIO)
        for area, shape in zip(fractions[:-2:2], fractions[1:-2:2], strict=True):
            target = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * area)
            ratio = math.exp(low + (high - low) * shape)
            w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = int(row * (height - h + 1)), int(column * (width - w + 1))
                return Box(top, left, h, w, flip)
        w = min(width, round(height * RATIO[1]))
        h = min(height, round(width / RATIO[0]))
        return Box((height - h) // 2, (width - w) // 2, h, w, flip)


class ImageFiles:
    """The image files of a split; by slices and indices, uint8 tensors of the unaugmented images.

    It stands where a data set in memory has a tensor [N, 3, S, S]. Resize and CenterCrop are
    torchvision's, on PIL images.
    """

    def __init__(
        self, root: Path, names: Sequence[str], sizes: Sequence[int], resize: int, image_size: int
    ) -> None:
        self.root, self.names, self.sizes = root, names, sizes
        self.resize, self.image_size = resize, image_size
        self._ahead: dict[tuple[int, int], Decoding] = {}

    @property
    def shape(self) -> torch.Size:
        """[N, 3, S, S]."""
        return torch.Size((len(self.names), 3, self.image_size, self.image_size))

    def select(self, rows: Sequence[int]) -> "ImageFiles":
        """Some of the files."""
        names, sizes = [self.names[row] for row in rows], [self.sizes[row] for row in rows]
        return ImageFiles(self.root, names, sizes, self.resize, self.image_size)

    def narrow(self, dim: int, start: int, length: int) -> "ImageFiles":
        """`length` of the files from `start` on; `dim` is 0, as of a tensor."""
        return self.select(range(start, start + length))

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """The images at `rows`; after a slice the next one is decoded in the background."""
        if isinstance(rows, Tensor):
            return self._begin(rows.tolist()).wait()
        start, stop, _ = rows.indices(len(self.names))
        found = self._ahead.pop((start, stop), None) or self._begin(range(start, stop))
        following = range(stop, min(2 * stop - start, len(self.names)))
        self._ahead = {(stop, following.stop): self._begin(following)} if following else {}
        return found.wait()

    def _begin(self, rows: Sequence[int]) -> "Decoding":
        def work(place: int, out: np.ndarray) -> None:
            out[:] = squared(self.read(rows[place]), self.resize, self.image_size)

        paths = [self.path(row) for row in rows]
        return Decoding(work, paths, self.image_size, pinned=False)

    def path(self, row: int) -> str:
        """Where a file lies."""
        return f"{self.root}/{self.names[row]}"

    def read(self, row: int) -> Image.Image:
        """The whole image, in RGB."""
        return read_rgb(self.path(row))


class Decoding:
    """Images on their way into one tensor [n, 3, S, S]."""

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

        pool = threads(torch.get_num_threads())
        self.waiting: list[Future[None]] = [pool.submit(named, i) for i in range(len(names))]

    def wait(self) -> Tensor:
        """The images, all decoded.

        Raises:
            KdbenchError: one cannot be read; the first in order is named.
        """
        try:
            for future in self.waiting:
                future.result()
        finally:
            self.cancel()
        return self.images

    def cancel(self) -> None:
        """Decode none that is not being decoded."""
        for future in self.waiting:
            future.cancel()


@cache
def threads(count: int) -> ThreadPoolExecutor:
    """The decoding threads of this process."""
    return ThreadPoolExecutor(count, "decode")


class StreamedImages:
    """Training images as views from their files, decoded ahead; used as `TrainImages` is."""

    def __init__(
        self,
        files: ImageFiles,
        views: ResizedCrops,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
    ) -> None:
        self.files, self.views, self.device = files, views, device
        self.height = self.width = files.image_size
        self.constants = constants_on(mean, std, device)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.files.names)

    def epoch(
        self, order: Tensor, view: Tensor, size: int, first: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As `TrainImages.epoch`; the batches after the one in use are being decoded.

        Raises:
            KdbenchError: an image cannot be read.
        """
        begun: deque[tuple[Tensor, Decoding]] = deque()
        try:
            for start in range(first * size, len(order), size):
                index = order[start : start + size]
                begun.append((index, self._begin(index, view[index])))
                if len(begun) > AHEAD:
                    yield self._finish(*begun.popleft())
            while begun:
                yield self._finish(*begun.popleft())
        finally:
            for _, decoding in begun:
                decoding.cancel()

    def _begin(self, index: Tensor, view: Tensor) -> Decoding:
        rows, numbers = index.tolist(), view.tolist()

        def work(place: int, out: np.ndarray) -> None:
            image = self.files.read(rows[place])
            box = self.views.box(numbers[place], image.height, image.width)
            area = (box.left, box.top, box.left + box.width, box.top + box.height)
            cropped = image.crop(area).resize((self.width, self.height), Image.Resampling.BILINEAR)
            pixels = np.asarray(cropped).transpose(2, 0, 1)
            out[:] = pixels[:, :, ::-1] if box.flip else pixels

        paths = [self.files.path(row) for row in rows]
        return Decoding(work, paths, self.files.image_size, pinned=self.device.type == "cuda")

    def _finish(self, index: Tensor, decoding: Decoding) -> tuple[Tensor, Tensor]:
        images = decoding.wait().to(self.device, non_blocking=True)
        return index.to(self.device, non_blocking=True), self.normalised(images)

    def batch(self, index: Tensor, view: Tensor) -> Tensor:
        """Normalised views [B, 3, S, S] float32 of the images at `index` [B]; `view` [B]."""
        return self.normalised(self.crop(index, view))

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> float32, as `normalise`."""
        return normalise_with(images, *self.constants)

    def crop(self, index: Tensor, view: Tensor) -> Tensor:
        """Views [B, 3, S, S] uint8 of the images at `index` [B]; `view` [B]; decoded at once."""
        return self._begin(index.cpu(), view.cpu()).wait().to(self.device)


@dataclass(frozen=True, eq=False)
class StreamedDataset(Dataset):
    """A data set whose splits are `ImageFiles`."""

    views: ResizedCrops

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the names and sizes of all splits' files, in order; labels follow from names.

        Not over their content: that would mean to read the whole set at every start.
        """
        digest = sha256()
        for name, split in self.splits.items():
            digest.update(f"{name} {len(split.labels)} {split.images.shape[1:]}\n".encode())
            files = files_of(split)
            for path, size in zip(files.names, files.sizes, strict=True):
                digest.update(f"{path} {size}\n".encode())
        return digest.hexdigest()


def files_of(split: Split) -> ImageFiles:
    """The files of a streamed set's split."""
    assert isinstance(split.images, ImageFiles)
    return split.images


def images_of(dataset: Dataset, device: torch.device) -> TrainImages | StreamedImages:
    """The training images of a data set, ready to give views: on the device, or from files."""
    constants = dataset.mean, dataset.std, device
    if isinstance(dataset, StreamedDataset):
        return StreamedImages(files_of(dataset.train), dataset.views, *constants)
    images, views = dataset.train.images, dataset.views
    assert isinstance(images, Tensor)
    assert isinstance(views, CutViews)
    return TrainImages(images, views, *constants)
