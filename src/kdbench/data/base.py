"""What every data set is: uint8 images in memory, labels, their normalisation and views."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdbench.data.views import Views
from kdbench.errors import ConfigError

HOLD_OUT_KEY = 0x68656C64  # fixed: every run holds out the same images


class Split(NamedTuple):
    """Images and their labels."""

    images: Tensor  # [N, C, H, W] uint8
    labels: Tensor  # [N] int64


@dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Raises:
        ConfigError: a normalisation or a pad that does not fit the images.
    """

    name: str
    num_classes: int
    train: Split
    test: Split
    val: Split | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    views: Views

    def __post_init__(self) -> None:
        """Check normalisation and pad against the images."""
        channels, height, width = self.train.images.shape[1:]
        for key in ("mean", "std"):
            if len(getattr(self, key)) != channels:
                raise ConfigError(f"dataset.{key} must have {channels} numbers, one a channel")
        if min(self.std) <= 0:
            raise ConfigError(f"dataset.std must be above 0, not {list(self.std)}")
        if self.views.pad >= min(height, width):
            raise ConfigError(f"dataset.pad must be below {min(height, width)}, the image's side")

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the shapes, pixels and labels of all splits; the path plays no part."""
        digest = hashlib.sha256()
        for split in (self.train, self.val, self.test):
            for tensor in split or ():
                digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


def assemble(
    name: str,
    num_classes: int,
    train: Split,
    test: Split,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    pad: int,
    flip: bool,
    val_split: int,
) -> Dataset:
    """A data set from its two splits and the settings that every configuration file has.

    Raises:
        ConfigError: a setting that does not fit the images.
    """
    train, val = hold_out(train, val_split, num_classes)
    return Dataset(name, num_classes, train, test, val, tuple(mean), tuple(std), Views(pad, flip))


def hold_out(train: Split, val_split: int, num_classes: int) -> tuple[Split, Split | None]:
    """Hold out `val_split` training images, class by class in turn, the same for every seed.

    Raises:
        ConfigError: `val_split` is negative, smaller than the number of classes, or leaves nothing.
    """
    if val_split == 0:
        return train, None
    total = len(train.labels)
    if not num_classes <= val_split < total:
        raise ConfigError(
            f"dataset.val_split must be 0, or from {num_classes} (one image a class) to "
            f"{total - 1}, not {val_split}"
        )
    words = np.random.Philox(key=HOLD_OUT_KEY).random_raw(total)
    shuffled = np.argsort(words, kind="stable")
    labels = train.labels.numpy()[shuffled]
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], labels[by_class], side="left")
    rank = np.arange(total) - starts  # of each image within its class
    chosen = shuffled[by_class[np.argsort(rank, kind="stable")[:val_split]]]
    held = torch.zeros(total, dtype=torch.bool)
    held[torch.from_numpy(chosen)] = True
    return Split(*(t[~held] for t in train)), Split(*(t[held] for t in train))
