"""Fewer training images: a part of each class, or a long tail of classes.

The same images for every run and seed. A class's images have one fixed order, of which the first
are kept: what a fraction keeps lies in what a larger one keeps.
"""

import numpy as np
import torch

from kdbench.errors import ConfigError

ORDER_KEY = 0x72656765  # fixed: every run keeps the same images


def kept_rows(
    labels: torch.Tensor, num_classes: int, fraction: float, long_tail: float
) -> torch.Tensor:
    """Return the rows [n] of training images that are kept, in their own order; labels are [N].

    Args:
        labels: of all training images.
        num_classes: K.
        fraction: of each class, rounded to whole images.
        long_tail: how many times as many images the first class keeps as the last one: class k
            keeps floor(N / K * long_tail^(-k / (K - 1))), where it has so many. Source: CIFAR-LT as
            in LDAM's released code (Cao et al. 2019, arXiv 1906.07413). Of these the fraction.

    Raises:
        ConfigError: a setting makes no sense, or leaves a class without images.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"dataset.fraction must be above 0 and at most 1, not {fraction}")
    if not 1 <= long_tail < float("inf"):
        raise ConfigError(f"dataset.long_tail must be 1 or more, not {long_tail}")
    counts = np.bincount(labels.numpy(), minlength=num_classes)
    powers = np.arange(num_classes) / max(1, num_classes - 1)
    # A hair above: the last class of CIFAR-100-LT has 500 / 100 images, and 4.999... is 4.
    sizes = np.floor(len(labels) / num_classes * long_tail**-powers * (1 + 1e-12)).astype(int)
    wanted = counts if long_tail == 1 else np.minimum(counts, sizes)
    wanted = np.floor(wanted * fraction + 0.5).astype(int)
    if (wanted[counts > 0] == 0).any():
        empty = int(np.flatnonzero((wanted == 0) & (counts > 0))[0])
        raise ConfigError(
            f"dataset.fraction={fraction:g} with dataset.long_tail={long_tail:g} leaves class "
            f"{empty} without training images, of {counts[empty]}: keep more"
        )
    words = np.random.Philox(key=ORDER_KEY).random_raw(len(labels))
    shuffled = np.argsort(words, kind="stable")
    by_class = shuffled[np.argsort(labels.numpy()[shuffled], kind="stable")]
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = rank < np.repeat(wanted, counts)
    return torch.from_numpy(np.sort(by_class[kept]))
