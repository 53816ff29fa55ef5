"""Data sets: uint8 images, labels, their normalisation and views."""

import hashlib
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, NamedTuple, Protocol, get_type_hints

import numpy as np
import torch
from torch import Tensor

from kdbench.data.augmentation.views import AnyViews, Views
from kdbench.data.regimes import kept_rows
from kdbench.errors import ConfigError, KdbenchError, nearest
from kdbench.system.files import named_path

HOLD_OUT_KEY = 0x68656C64  # fixed: every run holds out the same images


class Images(Protocol):
    """Unaugmented images, uint8 [N, C, H, W]: a tensor, or a reader of files."""

    @property
    def shape(self) -> torch.Size:
        """[N, C, H, W]."""

    def __getitem__(self, rows: slice | Tensor, /) -> Tensor:
        """Return the images at `rows`, uint8 [n, C, H, W]."""

    def narrow(self, dim: int, start: int, length: int) -> "Images":
        """Return `length` images from `start` on; `dim` is 0."""


class Split(NamedTuple):
    """Images and their labels."""

    images: Images  # [N, C, H, W] uint8; a tensor, of a streamed set `ImageFiles`
    labels: Tensor  # [N] int64


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, in memory on the CPU unless it is streamed from its files (`streamed`).

    Raises:
        ConfigError: the normalisation or the pad does not fit the images.
        KdbenchError: a split is empty or a label is not one of the classes.
    """

    name: str
    num_classes: int
    train: Split
    test: Split
    val: Split | None
    mean: tuple[float, ...]  # of pixels in 0..1, one number a channel
    std: tuple[float, ...]
    views: AnyViews

    def __post_init__(self) -> None:
        """Check labels, normalisation and pad against the images."""
        channels, height, width = self.train.images.shape[1:]
        for key, bounds in (("mean", "from 0"), ("std", "above 0")):
            values = getattr(self, key)
            if len(values) != channels:
                raise ConfigError(f"dataset.{key} must have {channels} numbers, one a channel")
            if not all(0 <= value <= 1 and (value or key == "mean") for value in values):
                raise ConfigError(
                    f"dataset.{key} must be {bounds} to 1, as pixels are, not {list(values)}"
                )
        if self.views.pad >= min(height, width):
            raise ConfigError(f"dataset.pad must be below {min(height, width)}, the image's side")
        for name, split in self.splits.items():
            if len(split.labels) == 0:
                raise KdbenchError(f"{self.name} has no {name} images")
            low, high = split.labels.aminmax()
            if low < 0 or high >= self.num_classes:
                raise KdbenchError(
                    f"{self.name} has {self.num_classes} classes, but {name} labels from {low} "
                    f"to {high}: they must be 0 to {self.num_classes - 1}"
                )

    @property
    def splits(self) -> dict[str, Split]:
        """The existing splits by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    @property
    def images(self) -> int:
        """The number of training images."""
        return len(self.train.labels)

    @property
    def scored(self) -> int:
        """The number of images on which a student is scored."""
        return sum(len(split.labels) for name, split in self.splits.items() if name != "train")

    @property
    def replaced(self) -> Collection[int] | None:
        """The rows of replaced training images; None where images may not be replaced."""
        return None

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the shapes, pixels and labels of all splits.

        The path has no influence, nor do the settings in the configuration (mean, std,
        pad, flip).
        """
        digest = hashlib.sha256()
        for split in self.splits.values():
            for tensor in split:
                assert isinstance(tensor, Tensor)  # a streamed set has a fingerprint of its own
                digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


def assemble(
    name: str,
    num_classes: int,
    train: Split,
    test: Split,
    *,
    mean: list[float],
    std: list[float],
    pad: int,
    flip: bool,
    val_split: int,
    fraction: float = 1.0,
    long_tail: float = 1.0,
) -> Dataset:
    """Make a data set from its two splits and the settings that every configuration file has.

    Images are held out before some are left out: a smaller training set has the same ones.

    Raises:
        ConfigError: a setting does not fit the images.
        KdbenchError: a split is empty or a label is not one of the classes.
    """
    train, val = hold_out(train, val_split, num_classes)
    train = fewer(train, num_classes, fraction, long_tail)
    return Dataset(name, num_classes, train, test, val, tuple(mean), tuple(std), Views(pad, flip))


class Loaded(NamedTuple):
    """What a data set is before the settings that every configuration file has."""

    name: str
    num_classes: int
    train: Split
    test: Split


def assembled(load: Callable[..., Loaded]) -> Callable[..., Dataset]:
    """Make the function that a configuration names of one that loads a data set's two splits.

    Its parameters, which are what a file may set, are those of `load`, which have no defaults, and
    then those of `assemble`.
    """
    own, every = inspect.signature(load).parameters, inspect.signature(assemble).parameters
    shared = [
        parameter.replace(kind=parameter.POSITIONAL_OR_KEYWORD)
        for parameter in every.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    signature = inspect.Signature([*own.values(), *shared], return_annotation=Dataset)
    hints = get_type_hints(assemble)

    @wraps(load)
    def made(*values: Any, **settings: Any) -> Dataset:
        given = signature.bind(*values, **settings).arguments
        loaded = load(**{name: given.pop(name) for name in own if name in given})
        return assemble(*loaded, **given)

    of_shared = {parameter.name: hints[parameter.name] for parameter in shared}
    made.__annotations__ = get_type_hints(load) | of_shared | {"return": Dataset}
    made.__dict__["__signature__"] = signature
    return made


def fewer(train: Split, num_classes: int, fraction: float, long_tail: float) -> Split:
    """What is kept of the training images, as `kdbench.data.regimes` says.

    Raises:
        ConfigError: a setting makes no sense, or leaves a class without images.
    """
    if (fraction, long_tail) == (1, 1):
        return train
    rows = kept_rows(train.labels, num_classes, fraction, long_tail)
    return Split(train.images[rows], train.labels[rows])


def hold_out(train: Split, val_split: int, num_classes: int) -> tuple[Split, Split | None]:
    """Hold out `val_split` training images, class by class in turn, the same for every seed.

    Classes therefore have equally many held-out images, give or take one. Both parts keep the
    order of `train`.

    Raises:
        ConfigError: `val_split` is negative, smaller than the number of classes, or leaves a class
            without training images.
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
    kept = Split(*(t[~held] for t in train))
    if len(kept.labels.unique()) < len(train.labels.unique()):
        raise ConfigError(
            f"dataset.val_split={val_split} leaves a class without training images: the smallest "
            f"class has {train.labels.unique(return_counts=True)[1].min()}"
        )
    return kept, Split(*(t[held] for t in train))


def folder_of(root: str | None) -> Path:
    """Return the absolute path of `dataset.root`.

    Raises:
        ConfigError: it is not set.
    """
    if root is None:
        raise ConfigError("no folder of images is named: set dataset.root=DIR")
    return named_path(root).resolve()


def pick_test_split(folder: Path, found: Collection[str], wanted: str | None) -> str:
    """Return the test split: the wanted one, else the only one.

    Raises:
        ConfigError: it does not exist, or there are several and none is named.
    """
    if wanted is not None:
        if wanted not in found:
            raise ConfigError(
                f"{folder} has no dataset.test_split={wanted}: {nearest(wanted, found)}"
            )
        return wanted
    if not found:
        raise ConfigError(f"{folder} has nothing to score on: neither val nor test")
    if len(found) > 1:
        first, second = sorted(found)[:2]
        raise ConfigError(
            f"{folder} has both {first} and {second}: add dataset.test_split={first} or "
            f"dataset.test_split={second}"
        )
    return next(iter(found))
