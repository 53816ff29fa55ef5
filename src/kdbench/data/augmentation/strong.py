"""The second, strongly augmented view of an image, for methods of two views.

The view has its own crop and flip, then RandAugment with Cutout. Its draws are further words of the
epoch's stream, so they too follow from (seed, epoch) on every device and after every resume, and
the first view of a method of two views is that of every other method.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kdbench.data.augmentation.randaugment import (
    FRACTIONS,
    OPERATIONS,
    SLOTS,
    Draws,
    draws_from,
    randaugment,
)
from kdbench.data.augmentation.views import TrainImages, epoch_words
from kdbench.errors import ConfigError

if TYPE_CHECKING:  # who passes its own views needs no decoders
    from kdbench.data.streaming.streamed import StreamedImages

FIRST_WORD = 2  # earlier words are epoch_plan's
MOST_VIEWS = 2


def check_views(views: int) -> None:
    """Refuse a method that wants more than two views.

    Raises:
        ConfigError: the method wants more than two.
    """
    if views > MOST_VIEWS:
        raise ConfigError(
            f"the method wants {views} views of each image, but there are {MOST_VIEWS}: "
            "crop and flip, and the same with RandAugment"
        )


def strong_plan(
    num_samples: int, view_count: int, height: int, width: int, seed: int, epoch: int
) -> tuple[Tensor, Draws]:
    """Draw every image's second view in an epoch, [N] int64, and its RandAugment, on the CPU.

    Words 2 to 9 of an image are: view, an operation for each slot, a magnitude for each slot,
    Cutout's side, column and row. A fraction is the upper 53 bits of its word.
    """
    count = 1 + SLOTS + FRACTIONS
    words = epoch_words(FIRST_WORD + count, num_samples, seed, epoch)[FIRST_WORD:]
    view = (words[0] % np.uint64(view_count)).astype(np.int64)
    op = (words[1 : 1 + SLOTS] % np.uint64(len(OPERATIONS))).astype(np.int64)
    fractions = (words[1 + SLOTS :] >> np.uint64(11)) * 2.0**-53
    return torch.from_numpy(view), draws_from(op, fractions, height, width)


class StrongView:
    """The second view of an epoch's images."""

    def __init__(self, images: "TrainImages | StreamedImages", seed: int, epoch: int) -> None:
        self.images = images
        size = (images.height, images.width)
        view, draws = strong_plan(len(images), images.views.count, *size, seed, epoch)
        device = images.device
        self.view = view.to(device)
        self.draws = Draws(*(part.to(device) for part in draws))

    def batch(self, index: Tensor) -> Tensor:
        """Return normalised views [B, C, H, W] float32 of the images at `index` [B]."""
        draws = Draws(*(part[index] for part in self.draws))
        strong = randaugment(self.images.crop(index, self.view[index]), draws)
        return self.images.normalised(strong)


def stack_views(views: Sequence[Tensor], memory_format: torch.memory_format) -> Tensor:
    """Stack V tensors [B, C, H, W] to [V, B, C, H, W], each in `memory_format`; keep one as is."""
    if len(views) == 1:
        return views[0].to(memory_format=memory_format)
    joined = torch.cat(list(views)).to(memory_format=memory_format)
    return joined.unflatten(0, (len(views), -1))
