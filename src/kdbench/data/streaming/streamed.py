"""Training images decoded as they are needed, for sets that do not fit into memory.

A batch is decoded by threads (`image_files`), some batches ahead of the step that reads it. A view
follows from its integer alone, so an epoch is the same with any number of threads and after every
resume.
"""

import os
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdbench.data.augmentation.crops import Box, ResizedCrops
from kdbench.data.augmentation.views import (
    Cut,
    CutViews,
    Pixels,
    TrainImages,
    constants_on,
    normalise_with,
    unchanged,
    whole,
)
from kdbench.data.base import Dataset, Split
from kdbench.data.decoding.dali import Dali
from kdbench.data.decoding.device_decode import Decode, DeviceDecoding, nvjpeg
from kdbench.data.streaming.image_files import Decoding, ImageFiles
from kdbench.errors import KdbenchError

Decoder = Literal["pillow", "nvjpeg", "dali"]

AHEAD = 3  # batches that are decoded during a step


class StreamedImages:
    """Training images as views from files, decoded ahead; the interface is `TrainImages`'."""

    def __init__(
        self,
        files: ImageFiles,
        views: ResizedCrops,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        decode: Decode | None = None,  # on the device; None: Pillow
    ) -> None:
        self.files, self.views, self.device, self.decode = files, views, device, decode
        self.height = self.width = files.image_size
        self.constants = constants_on(mean, std, device)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def epoch(
        self,
        order: Tensor,
        view: Tensor,
        size: int,
        first: int,
        cut: Cut = whole,
        by_place: bool = False,
        pixels: Pixels = unchanged,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches as `TrainImages.epoch` does, while the following ones are decoded.

        Raises:
            KdbenchError: an image cannot be read.
        """
        begun: deque[tuple[Tensor, Tensor, Decoding | DeviceDecoding]] = deque()
        all_places = torch.arange(len(order))
        try:
            for start in range(first * size, len(order), size):
                batch = slice(start, start + size)
                parts = zip(cut(order[batch]), cut(all_places[batch]), strict=True)
                for index, places in parts:
                    decoding = self._begin(index, view[places if by_place else index])
                    begun.append((index, places, decoding))
                    if len(begun) > AHEAD:
                        yield self._finish(*begun.popleft(), pixels)
            while begun:
                yield self._finish(*begun.popleft(), pixels)
        finally:
            for *_, decoding in begun:
                decoding.cancel()

    def _begin(self, index: Tensor, view: Tensor) -> Decoding | DeviceDecoding:
        rows, numbers = index.tolist(), view.tolist()

        def box_of(place: int, height: int, width: int) -> Box:
            return self.views.box(numbers[place], height, width)

        if self.decode is not None:
            return DeviceDecoding(self.files, rows, box_of, self.decode, self.device)

        def work(place: int, out: np.ndarray) -> None:
            image = self.files.read(rows[place])
            box = box_of(place, image.height, image.width)
            area = (box.left, box.top, box.left + box.width, box.top + box.height)
            cropped = image.crop(area).resize((self.width, self.height), Image.Resampling.BILINEAR)
            pixels = np.asarray(cropped).transpose(2, 0, 1)
            out[:] = pixels[:, :, ::-1] if box.flip else pixels

        where = [self.files.source.where(row) for row in rows]
        return Decoding(work, where, self.files.image_size, pinned=self.device.type == "cuda")

    def _finish(
        self, index: Tensor, places: Tensor, decoding: Decoding | DeviceDecoding, pixels: Pixels
    ) -> tuple[Tensor, Tensor]:
        images = pixels(decoding.wait(), places).to(self.device, non_blocking=True)
        return index.to(self.device, non_blocking=True), self.normalised(images)

    def batch(self, index: Tensor, view: Tensor) -> Tensor:
        """Return normalised views `view` [B] of the images at `index` [B]: [B, 3, S, S] float32."""
        return self.normalised(self.crop(index, view))

    def normalised(self, images: Tensor) -> Tensor:
        """Normalise uint8 [B, 3, S, S] to float32, as `normalise`."""
        return normalise_with(images, *self.constants)

    def crop(self, index: Tensor, view: Tensor) -> Tensor:
        """Decode and cut the views `view` [B] of the images at `index` [B]: [B, 3, S, S] uint8."""
        return self._begin(index.cpu(), view.cpu()).wait().to(self.device)


@dataclass(frozen=True, eq=False)
class StreamedDataset(Dataset):
    """A data set whose splits are `ImageFiles`."""

    views: ResizedCrops
    decoder: Decoder = "pillow"

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 over names and sizes of all splits' files, in order; labels follow from names.

        Their content is left out, since the whole set would have to be read at every start.
        """
        digest = sha256()
        for name, split in self.splits.items():
            digest.update(f"{name} {len(split.labels)} {split.images.shape[1:]}\n".encode())
            files = files_of(split)
            for path, size in zip(files.source.names, files.source.sizes, strict=True):
                digest.update(os.fsencode(f"{path} {size}\n"))  # a name need not be UTF-8
        return digest.hexdigest()

    @property
    def replaced(self) -> Collection[int] | None:
        """The rows of the replaced training images so far."""
        placeholders = files_of(self.train).placeholders
        return None if placeholders is None else placeholders.broken


def files_of(split: Split) -> ImageFiles:
    """Return the files of a streamed set's split."""
    assert isinstance(split.images, ImageFiles)
    return split.images


def images_of(dataset: Dataset, device: torch.device) -> TrainImages | StreamedImages:
    """Return a data set's training images for cutting views: on the device, or from files.

    Raises:
        KdbenchError: the decoder needs a GPU, and `device` is none.
    """
    constants = dataset.mean, dataset.std, device
    if isinstance(dataset, StreamedDataset):
        on_gpu = dataset.decoder == "nvjpeg"
        if on_gpu and device.type != "cuda":
            raise KdbenchError(
                "dataset.decoder=nvjpeg decodes on a GPU: set dataset.decoder=pillow"
            )
        decode: Decode | None = nvjpeg(device) if on_gpu else None
        if dataset.decoder == "dali":
            decode = Dali(device, torch.get_num_threads())
        return StreamedImages(files_of(dataset.train), dataset.views, *constants, decode)
    images, views = dataset.train.images, dataset.views
    assert isinstance(images, Tensor)
    assert isinstance(views, CutViews)
    return TrainImages(images, views, *constants)
