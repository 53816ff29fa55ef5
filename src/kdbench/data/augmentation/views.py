"""Views of an image, the epoch's plan, and batches cut on the device.

A view is one crop and flip out of a finite set, named by an integer. An epoch is therefore two
integer tensors, which makes it the same on every device and after every resume, and lets a
teacher's outputs be cached over (image, view). Where the views are a continuum (`rotation`,
`streamed`), the integer is a view's random number, and there is no cache.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.errors import ConfigError


class AnyViews(Protocol):
    """The properties of views that `epoch_plan` and the data set need."""

    finite: ClassVar[bool]  # outputs on all views can be cached

    @property
    def count(self) -> int:
        """The number of an image's views, or of the integers that name them: at most 2^63."""

    @property
    def pad(self) -> int:
        """The black border, in pixels, of the images that views are cut from."""

    @property
    def flip(self) -> bool:
        """Whether some views are mirrored."""


CONTINUUM = 2**63  # a view's integer is then the upper 63 bits of its random word


@dataclass(frozen=True)
class Views:
    """Crops of the original size out of an image zero-padded by `pad`, each flipped or not.

    View v is the crop at row (v // f) // s and column (v // f) % s, with s = 2 pad + 1 and f = 2 if
    `flip` else 1; it is mirrored if `flip` and v is odd. CIFAR's pad 4 with flip has 162.

    Raises:
        ConfigError: a negative pad.
    """

    finite: ClassVar[bool] = True
    pad: int
    flip: bool

    def __post_init__(self) -> None:
        """Check the pad."""
        if self.pad < 0:
            raise ConfigError(f"dataset.pad must be 0 or more, not {self.pad}")

    @property
    def count(self) -> int:
        """The number of an image's views."""
        return (2 * self.pad + 1) ** 2 * (2 if self.flip else 1)

    def decode(self, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return each view's row offset, column offset and flip (0 or 1), all [B] int64."""
        flips, side = 2 if self.flip else 1, 2 * self.pad + 1
        crop = view // flips
        return crop // side, crop % side, view % flips

    def positions(self, view: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the positions of each view's pixels in a padded plane: [B, H, W].

        Args:
            view: [B].
            rows: [H], where each row of the plane starts.
            columns: [W], 0 to W - 1.
        """
        row, column, flip = self.decode(view)
        width = len(columns)
        mirrored = columns + flip[:, None] * (width - 1 - 2 * columns)
        starts = row[:, None] * (width + 2 * self.pad) + rows  # [B, H]
        return starts[:, :, None] + (column[:, None] + mirrored)[:, None, :]


def epoch_words(count: int, num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """Return the first `count` random words of every image in an epoch, [count, N] uint64.

    Philox is counter-based: the words of any epoch follow from (seed, epoch) alone, and asking for
    more leaves the first ones as they are. Only its raw 64-bit words are used, because NumPy
    promises those, and not its distributions, across versions. Rows 0 and 1 are `epoch_plan`'s,
    the next `kdbench.data.augmentation.strong`'s.
    """
    words = np.random.Philox(key=[seed, epoch]).random_raw(count * num_samples)
    return words.reshape(count, num_samples)


def epoch_plan(num_samples: int, views: AnyViews, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Return the order of an epoch and each image's view in it, two int64 CPU tensors [N].

    `view[i]` belongs to image i, at any place in the order. The bias of the remainder is below
    count / 2^64.
    """
    order_words, view_words = epoch_words(2, num_samples, seed, epoch)
    order = np.argsort(order_words, kind="stable").astype(np.int64)
    view = (view_words % np.uint64(views.count)).astype(np.int64)
    return torch.from_numpy(order), torch.from_numpy(view)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [B, C, H, W] -> float32 (x / 255 - mean) / std, bit for bit as ToTensor + Normalize."""
    return normalise_with(images, *constants_on(mean, std, images.device))


def constants_on(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """255 [], mean and std [C, 1, 1] on the device, for `normalise_with`."""
    return (
        torch.full((), 255.0).to(device),
        torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1).to(device),
        torch.tensor(std, dtype=torch.float32).view(-1, 1, 1).to(device),
    )


def normalise_with(images: Tensor, full: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Do `normalise` with constants that are on the device already."""
    # 255 is a tensor on the device because PyTorch on CUDA divides by a host number as a product
    # with its reciprocal, which rounds otherwise than the CPU's division.
    return images.float().div_(full).sub_(mean).div_(std)


@runtime_checkable
class CutViews(AnyViews, Protocol):
    """Views that are cut on the device from a plane with a black border."""

    def positions(self, view: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the positions of each view's pixels in a padded plane [B, H, W]; see `Views`."""


Cut = Callable[[Tensor], Sequence[Tensor]]  # the wanted parts of a batch's images [B]


def whole(index: Tensor) -> Sequence[Tensor]:
    """Return the whole batch as one part."""
    return [index]


# uint8 crops [B, C, H, W] and their places in the epoch's order [B] -> uint8 crops
Pixels = Callable[[Tensor, Tensor], Tensor]


def unchanged(crops: Tensor, places: Tensor) -> Tensor:
    """Return the crops as they are."""
    return crops


class TrainImages:
    """Training images on the device, zero-padded once; a batch is one gather and a normalisation.

    Padding is black before normalisation, as RandomCrop's on a PIL image. Nothing in `batch` waits
    for the device or copies from the host.
    """

    def __init__(
        self,
        images: Tensor,  # [N, C, H, W] uint8
        views: CutViews,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
    ) -> None:
        self.views, self.device = views, device
        self.height, self.width = images.shape[2:]
        padded = F.pad(images.to(device), (views.pad,) * 4)  # [N, C, H', W']
        row_length = padded.shape[3]
        self.planes = padded.flatten(2)  # [N, C, H' * W']
        self.rows = torch.arange(self.height, device=device) * row_length  # where each starts
        self.columns = torch.arange(self.width, device=device)
        self.constants = constants_on(mean, std, device)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.planes)

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
        """Yield each batch's index [B] and normalised views [B, C, H, W] on the device.

        Where `cut` makes several parts of a batch or leaves some out, yield its parts instead.

        Args:
            order: [N] on the CPU; the last, short batch is kept.
            view: [N] on the CPU, row i for image i.
            size: B.
            first: the batch to begin with, from 0.
            cut: returns the wanted parts of a batch.
            by_place: view's row i is for the i-th image of the order instead.
            pixels: changes a part's pixels before normalisation.
        """
        order, view = order.to(self.device), view.to(self.device)  # once, so that no step waits
        all_places = torch.arange(len(order), device=self.device)

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for start in range(first * size, len(order), size):
                batch = slice(start, start + size)
                parts = zip(cut(order[batch]), cut(all_places[batch]), strict=True)
                for index, places in parts:
                    crops = self.crop(index, view[places if by_place else index])
                    yield index, self.normalised(pixels(crops, places))

        return batches()

    def batch(self, index: Tensor, view: Tensor) -> Tensor:
        """Return normalised views `view` [B] of the images at `index` [B]: [B, C, H, W] float32."""
        return self.normalised(self.crop(index, view))

    def normalised(self, images: Tensor) -> Tensor:
        """Normalise uint8 [B, C, H, W] to float32, as `normalise`."""
        return normalise_with(images, *self.constants)

    def crop(self, index: Tensor, view: Tensor) -> Tensor:
        """Cut the views `view` [B] of the images at `index` [B]: [B, C, H, W] uint8."""
        planes = self.planes.index_select(0, index)  # [B, C, H' * W']
        position = self.views.positions(view, self.rows, self.columns)  # [B, H, W] within a plane
        position = position.flatten(1)[:, None].expand(-1, planes.shape[1], -1)
        return planes.gather(2, position).unflatten(2, (self.height, self.width))
