"""What happens to a batch of views before networks see it: erasing, mixing, soft labels.

All draws of an epoch follow from (seed, epoch) and an image's place in the epoch's order, so that
they are the same after a resume, in a cohort and with any number of loading threads. Each
micro-batch is mixed with itself, as one of several GPUs mixes its own.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.data.augmentation import erasing, mixing
from kdbench.data.augmentation.erasing import draw_boxes, erased
from kdbench.data.augmentation.mixing import (
    Mix,
    Mixing,
    draw_mixes,
    larger_part,
    mixed_images,
    mixed_targets,
    of_batch,
)
from kdbench.seeds import derive


class BatchChanges(NamedTuple):
    """What a recipe does to batches."""

    mixing: Mixing
    erasing: float  # the probability of an image to be erased in part
    label_smoothing: float  # the part of a label that is spread over all classes

    @property
    def images(self) -> bool:
        """Whether images are changed, beyond the views that they are cut to."""
        return self.mixing.mixes or self.erasing > 0

    @property
    def any(self) -> bool:
        """Whether anything is done."""
        return self.images or self.label_smoothing > 0


class Changed(NamedTuple):
    """A batch after the changes."""

    images: Tensor  # [B, C, H, W]
    labels: Tensor  # [B] int64, of the larger part where images are mixed
    targets: Tensor | None  # [B, K] float32, what the labels are in full


class ChangedBatches:
    """The changes of an epoch's batches.

    Args:
        changes: what is done.
        count: N, the images of an epoch.
        size: height and width of an image.
        num_classes: K.
        seed: of the run's data.
        epoch: from 1.
        device: of the images.
    """

    def __init__(
        self,
        changes: BatchChanges,
        count: int,
        size: tuple[int, int],
        num_classes: int,
        seed: int,
        epoch: int,
        device: torch.device,
    ) -> None:
        self.changes, self.num_classes = changes, num_classes
        self.noise_seed = derive(seed, "erasing noise", epoch)
        self.noise = torch.Generator(device)
        self.mix: Mix | None = None
        self.boxes: Tensor | None = None
        if changes.mixing.mixes:
            numbers = fractions(mixing.FRACTIONS, count, derive(seed, "mixing"), epoch)
            drawn = draw_mixes(changes.mixing, numbers, *size)
            self.mix = Mix(*(part.to(device) for part in drawn))
        if changes.erasing > 0:
            numbers = fractions(erasing.FRACTIONS, count, derive(seed, "erasing"), epoch)
            self.boxes = draw_boxes(changes.erasing, numbers, *size).to(device)

    def __call__(self, images: Tensor, labels: Tensor, first: int) -> Changed:
        """Change a micro-batch: images [B, C, H, W], labels [B].

        Args:
            images: normalised views.
            labels: their classes.
            first: the place of the first in the epoch's order; the others follow it.
        """
        places = torch.arange(first, first + len(labels), device=labels.device)
        if self.boxes is not None:
            self.noise.manual_seed(derive(self.noise_seed, first))
            images = erased(images, self.boxes[places], self.noise)
        if not (self.mix is not None or self.changes.label_smoothing):
            return Changed(images, labels, None)
        targets = smoothed(labels, self.num_classes, self.changes.label_smoothing)
        if self.mix is not None:
            mix = of_batch(self.mix, places, self.changes.mixing.mode)
            images, targets = mixed_images(images, mix), mixed_targets(targets, mix)
            labels = larger_part(labels, mix)
        return Changed(images, labels, targets)


def smoothed(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return labels [B] as distributions [B, K] float32, with `smoothing` spread over all classes.

    Source: Szegedy et al., CVPR 2016, section 7, and timm's `mixup_target`.
    """
    return F.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def fractions(count: int, num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """Return `count` numbers in [0, 1) for every place of an epoch, [count, N] float64.

    Each is the upper 53 bits of a raw word of a counter-based generator keyed by (seed, epoch).
    """
    words = np.random.Philox(key=[seed, epoch]).random_raw(count * num_samples)
    found: np.ndarray = (words >> np.uint64(11)) * 2.0**-53
    return found.reshape(count, num_samples)
