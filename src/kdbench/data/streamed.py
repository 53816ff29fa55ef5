"""Training images decoded as they are needed, for sets that do not fit into memory.

A batch is decoded by threads (`image_files`), some batches ahead of the step that reads it. What a
view looks like follows from its number alone, so an epoch is the same with any number of threads
and after every resume.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdbench.data.base import Dataset, Split
from kdbench.data.image_files import Decoding, ImageFiles
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
        return len(self.files)

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

        where = [self.files.source.where(row) for row in rows]
        return Decoding(work, where, self.files.image_size, pinned=self.device.type == "cuda")

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
            for path, size in zip(files.source.names, files.source.sizes, strict=True):
                digest.update(f"{path} {size}\n".encode())
        return digest.hexdigest()

    @property
    def replaced(self) -> int | None:
        """How many training images could not be read, so far, and others stand in for."""
        stand_ins = files_of(self.train).stand_ins
        return None if stand_ins is None else len(stand_ins.broken)


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
