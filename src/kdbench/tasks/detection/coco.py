"""Data in COCO's layout: two folders of images, and an annotation file for each."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from kdbench.data.decoding.decode import Depth, naming, read_rgb
from kdbench.data.layout import size_of
from kdbench.data.scored import check_scored
from kdbench.data.streaming.sources import FolderSource
from kdbench.errors import ConfigError, KdbenchError
from kdbench.records.passport import sha256_of
from kdbench.system.files import named_path
from kdbench.tasks.detection.annotations import (
    Annotations,
    Picture,
    Target,
    read_annotations,
    said_of,
    targets,
)


@dataclass(frozen=True)
class ScaledViews:
    """An image at one of several sizes, mirrored or not.

    View v has size number v // f, with f = 2 if `flip` else 1; it is mirrored if `flip` and v is
    odd.
    """

    finite: ClassVar[bool] = True
    sizes: tuple[int, ...]  # of the shorter side, in pixels
    flip: bool
    pad: int = 0

    @property
    def count(self) -> int:
        """The number of an image's views."""
        return len(self.sizes) * (2 if self.flip else 1)

    def decode(self, view: int) -> tuple[int, bool]:
        """Return the shorter side, and whether the image is mirrored."""
        flips = 2 if self.flip else 1
        return self.sizes[view // flips], view % flips == 1


@dataclass(frozen=True)
class DetectionData:
    """Training and test images with boxes."""

    name: str
    train: list[Picture]  # images with a box
    targets: list[Target]  # of each of them
    train_folder: Path
    test: Annotations  # of the test images: COCO's val
    test_folder: Path
    views: ScaledViews
    max_size: int  # of the longer side, in pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str  # sha256 over both annotation files, and the names and sizes of the images
    depth: Depth  # reports images of 16 bits
    notes: tuple[str, ...] = ()  # a line on each kind of omission

    @property
    def num_classes(self) -> int:
        """The number of classes K, including the background, which is class 0."""
        return len(self.test.categories) + 1

    @property
    def images(self) -> int:
        """The number of training images."""
        return len(self.train)

    @property
    def scored(self) -> int:
        """The number of images on which a student is scored."""
        return len(self.test.pictures)

    @property
    def test_size(self) -> int:
        """The shorter side of test images, in pixels: the largest of training."""
        return max(self.views.sizes)


def coco(
    root: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    min_sizes: list[int],
    max_size: int,
    flip: bool,
    train_images: str = "train2017",
    val_images: str = "val2017",
    train_annotations: str = "annotations/instances_train2017.json",
    val_annotations: str = "annotations/instances_val2017.json",
) -> DetectionData:
    """Load COCO, or other data in its layout; paths are below `root`.

    `mean` and `std` are per channel, on a scale of 0 to 1. A training image is scaled until its
    shorter side is one of `min_sizes`, drawn anew each time, unless the longer side would exceed
    `max_size`; with `flip` it is mirrored with probability 1/2.

    Raises:
        ConfigError: a size that makes no sense.
        KdbenchError: a file is missing or broken; names it.
    """
    views = _views(min_sizes, max_size, flip, mean, std)
    folder = named_path(root)
    train = read_annotations(folder / train_annotations)
    test = read_annotations(folder / val_annotations)
    if train.categories != test.categories:
        raise KdbenchError(
            f"{train.path} and {test.path} have other categories: give two files of one data set"
        )
    if not test.pictures:
        raise KdbenchError(f"{test.path} has no images: there is nothing to score on")
    found, flat = targets(train)
    kept = [picture for picture in train.pictures if picture.id in found]
    if not kept:
        raise KdbenchError(f"{train.path} has no image with a box: there is nothing to train on")
    folders = folder / train_images, folder / val_images
    fingerprint = _fingerprint((train.path, test.path), folders, (kept, test.pictures))
    depth = Depth()
    _check_scored(folders[1], test.pictures, depth)
    return DetectionData(
        name="coco",
        train=kept,
        targets=[found[picture.id] for picture in kept],
        train_folder=folders[0],
        test=test,
        test_folder=folders[1],
        views=views,
        max_size=max_size,
        mean=tuple(mean),
        std=tuple(std),
        fingerprint=fingerprint,
        notes=(said_of(flat, train),) if flat else (),
        depth=depth,
    )


def _views(
    min_sizes: list[int],
    max_size: int,
    flip: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> ScaledViews:
    sizes = tuple(min_sizes)
    if not sizes or min(sizes) < 1 or max_size < max(sizes):
        raise ConfigError(
            f"dataset.min_sizes={list(sizes)} must be sizes from 1 to dataset.max_size={max_size}"
        )
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError("dataset.mean and dataset.std must be three numbers each, std above 0")
    return ScaledViews(sizes, flip)


def _fingerprint(
    files: Sequence[Path], folders: Sequence[Path], pictures: Sequence[Sequence[Picture]]
) -> str:
    digest = hashlib.sha256("".join(map(sha256_of, files)).encode())
    for folder, ones in zip(folders, pictures, strict=True):
        for picture in ones:
            digest.update(f"{picture.file} {_bytes(folder / picture.file)}\n".encode())
    return digest.hexdigest()


def _check_scored(folder: Path, pictures: Sequence[Picture], depth: Depth) -> None:
    """Refuse unreadable test images before the first step."""
    names = [picture.file for picture in pictures]

    def check(row: int, width: int, height: int) -> None:
        if (width, height) != (pictures[row].width, pictures[row].height):
            raise ValueError("not the size that its annotations say")

    source = FolderSource(folder, names, [0] * len(names), names, depth)
    check_scored(source, lambda row: read_picture(folder, pictures[row], depth), check)


def _bytes(path: Path) -> int:
    try:
        return size_of(path, path.stat())
    except OSError:
        raise KdbenchError(
            f"no image {path}: set dataset.root, or fetch the images that the annotations name"
        ) from None


def read_picture(folder: Path, picture: Picture, depth: Depth | None = None) -> Tensor:
    """Read an image as uint8 [3, H, W].

    Raises:
        KdbenchError: it cannot be read, or its size differs from its annotation's.
    """
    path = folder / picture.file
    with naming(str(path)):
        deep = (depth or Depth()).found
        pixels = np.array(read_rgb(path, lambda: deep(str(path)))).transpose(2, 0, 1)
    if pixels.shape[1:] != (picture.height, picture.width):
        found = f"{pixels.shape[2]} x {pixels.shape[1]}"
        raise KdbenchError(
            f"{path} has {found} pixels, its annotations say {picture.width} x {picture.height}: "
            "fetch one of them again"
        )
    return torch.from_numpy(np.ascontiguousarray(pixels))


def scaled_size(height: int, width: int, shorter: int, longest: int) -> Sequence[int]:
    """Return the size of an image whose shorter side becomes `shorter`, or its longer `longest`.

    Height and width are in pixels, halves rounded up. Source: detectron2's ResizeShortestEdge.
    """
    scale = min(shorter / min(height, width), longest / max(height, width))
    return [max(1, int(side * scale + 0.5)) for side in (height, width)]
