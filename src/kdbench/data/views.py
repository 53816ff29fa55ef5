"""Views of an image, the epoch's plan, and batches cut on the device.

A view is one crop and flip out of a finite set, named by an integer. An epoch is therefore two
integer tensors, which makes it the same on every device and after every resume, and lets a
teacher's answers be a table over (image, view).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.errors import ConfigError


@dataclass(frozen=True)
class Views:
    """Crops of the original size out of an image zero-padded by `pad`, each flipped or not.

    View v is the crop at row (v // f) // s and column (v // f) % s, with s = 2 pad + 1 and f = 2 if
    `flip` else 1; it is mirrored if `flip` and v is odd. CIFAR's pad 4 with flip has 162.

    Raises:
        ConfigError: a negative pad.
    """

    pad: int
    flip: bool

    def __post_init__(self) -> None:
        """Check the pad."""
        if self.pad < 0:
            raise ConfigError(f"dataset.pad must be 0 or more, not {self.pad}")

    @property
    def count(self) -> int:
        """How many views an image has."""
        return (2 * self.pad + 1) ** 2 * (2 if self.flip else 1)

    def decode(self, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row offset, column offset and flip (0 or 1) of each view; all [B] int64."""
        flips, side = 2 if self.flip else 1, 2 * self.pad + 1
        crop = view // flips
        return crop // side, crop % side, view % flips


def epoch_words(count: int, num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """The first `count` random words of every image in an epoch, [count, N] uint64.

    Philox is counter-based: the words of any epoch follow from (seed, epoch) alone, and asking for
    more leaves the first ones as they are. Only its raw 64-bit words are used, because NumPy
    promises those, and not its distributions, across versions. Rows 0 and 1 are `epoch_plan`'s,
    the next `kdbench.data.strong`'s.
    """
    words = np.random.Philox(key=[seed, epoch]).random_raw(count * num_samples)
    return words.reshape(count, num_samples)


def epoch_plan(num_samples: int, views: Views, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """The order of an epoch and each image's view in it, two int64 CPU tensors [N].

    `view[i]` belongs to image i wherever it stands in the order. The bias of the remainder is below
    count / 2^64.
    """
    order_words, view_words = epoch_words(2, num_samples, seed, epoch)
    order = np.argsort(order_words, kind="stable").astype(np.int64)
    view = (view_words % np.uint64(views.count)).astype(np.int64)
    return torch.from_numpy(order), torch.from_numpy(view)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [B, C, H, W] -> float32 (x / 255 - mean) / std, bit for bit as ToTensor + Normalize."""
    return _normalise(images, *_constants(mean, std, images.device))


def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """255 [], mean and std [C, 1, 1] on the device."""
    return (
        torch.full((), 255.0).to(device),
        torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1).to(device),
        torch.tensor(std, dtype=torch.float32).view(-1, 1, 1).to(device),
    )


def _normalise(images: Tensor, full: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    # 255 is a tensor on the device because PyTorch on CUDA divides by a host number as a product
    # with its reciprocal, which rounds otherwise than the CPU's division.
    return images.float().div_(full).sub_(mean).div_(std)


class TrainImages:
    """Training images on the device, zero-padded once; a batch is one gather and a normalisation.

    Padding is black before normalisation, as RandomCrop's on a PIL image. Nothing in `batch` waits
    for the device or copies from the host.
    """

    def __init__(
        self,
        images: Tensor,  # [N, C, H, W] uint8
        views: Views,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
    ) -> None:
        self.views, self.device = views, device
        self.height, self.width = images.shape[2:]
        padded = F.pad(images.to(device), (views.pad,) * 4)  # [N, C, H', W']
        self.row_length = padded.shape[3]
        self.planes = padded.flatten(2)  # [N, C, H' * W']
        self.rows = torch.arange(self.height, device=device) * self.row_length  # where each starts
        self.columns = torch.arange(self.width, device=device)
        self.constants = _constants(mean, std, device)

    def batch(self, index: Tensor, view: Tensor) -> Tensor:
        """Normalised views [B, C, H, W] float32 of the images at `index` [B]; `view` [B]."""
        return self.normalised(self.crop(index, view))

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> float32, as `normalise`."""
        return _normalise(images, *self.constants)

    def crop(self, index: Tensor, view: Tensor) -> Tensor:
        """Views [B, C, H, W] uint8 of the images at `index` [B]; `view` [B]."""
        row, column, flip = self.views.decode(view)
        mirrored = self.columns + flip[:, None] * (self.width - 1 - 2 * self.columns)
        rows = row[:, None] * self.row_length + self.rows  # [B, H]
        columns = column[:, None] + mirrored  # [B, W]
        position = rows[:, :, None] + columns[:, None, :]  # [B, H, W] within a plane
        planes = self.planes.index_select(0, index)  # [B, C, H' * W']
        position = position.flatten(1)[:, None].expand(-1, planes.shape[1], -1)
        return planes.gather(2, position).unflatten(2, (self.height, self.width))
