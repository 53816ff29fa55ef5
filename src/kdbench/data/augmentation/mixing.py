"""Mixup and CutMix of a batch with itself in reverse, as timm's Mixup, from given random numbers.

timm draws from NumPy's global generator, and the mixed pixels of a batch would depend on what ran
before it. Here a batch's shares and boxes follow from numbers that are drawn for the whole epoch.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

MixMode = Literal["batch", "pair", "elem"]
FRACTIONS = 5  # numbers in [0, 1) for each image: mixed or not, CutMix or not, share, row, column


class Mixing(NamedTuple):
    """How batches are mixed; the names are timm's."""

    mixup: float  # alpha of the share's Beta distribution; 0: no mixup
    cutmix: float  # the same of CutMix
    prob: float  # of a batch, pair or image to be mixed
    switch_prob: float  # of CutMix, where there are both
    mode: MixMode  # what one draw is for: a whole batch, two images with each other, one image

    @property
    def mixes(self) -> bool:
        """Whether anything is mixed at all."""
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0)


class Mix(NamedTuple):
    """The draws of N images: what stays of each, and where it is cut."""

    share: Tensor  # [N] float32, of the image itself in its label; 1: it is not mixed
    box: Tensor  # [N, 4] int64, first and last row (excluded), first and last column, of CutMix
    cut: Tensor  # [N] bool, CutMix and not mixup


def draw_mixes(mixing: Mixing, fractions: np.ndarray, height: int, width: int) -> Mix:
    """Turn numbers [FRACTIONS, N] in [0, 1) into draws, on the CPU.

    A share is the quantile of Beta(alpha, alpha) at a number. A box has the area 1 - share around
    a centre anywhere in the image; what is beyond the border is cut off, and the share in the label
    is that of the pixels that stay (timm's `correct_lam`).
    """
    from scipy.special import betaincinv  # slow to import, and only mixing needs it

    applied, switch, quantile, row, column = fractions
    both = mixing.mixup > 0 and mixing.cutmix > 0
    cut = switch < mixing.switch_prob if both else np.full(len(switch), mixing.cutmix > 0)
    alpha = np.where(cut, mixing.cutmix, mixing.mixup)
    share = np.where(applied < mixing.prob, betaincinv(alpha, alpha, quantile), 1.0)
    ratio = np.sqrt(1 - share)
    edges = []
    for length, centre in ((height, row), (width, column)):
        side, middle = (length * ratio).astype(np.int64), (centre * length).astype(np.int64)
        edges += [middle - side // 2, middle + (side + 1) // 2]
    top, bottom = (np.clip(edge, 0, height) for edge in edges[:2])
    left, right = (np.clip(edge, 0, width) for edge in edges[2:])
    cut &= share < 1
    area = (bottom - top) * (right - left)
    share = np.where(cut, 1 - area / (height * width), share)
    box = np.stack([top, bottom, left, right], axis=1)
    return Mix(torch.from_numpy(share).float(), torch.from_numpy(box), torch.from_numpy(cut))


def of_batch(mix: Mix, places: Tensor, mode: MixMode) -> Mix:
    """Return the draws of a batch at `places` [B] of the epoch, image i and image B-1-i alike.

    In mode "batch" all images have the draw of the first, in "pair" each half has the other's.
    """
    count = len(places)
    if mode == "batch":
        places = places[:1].expand(count)
    elif mode == "pair":
        half = (count + 1) // 2
        places = torch.cat([places[:half], places[: count // 2].flip(0)])
    return Mix(*(part[places] for part in mix))


def mixed_images(images: Tensor, mix: Mix) -> Tensor:
    """Mix images [B, C, H, W] with themselves in reverse; draws of B images."""
    height, width = images.shape[2:]
    row = torch.arange(height, device=images.device)[:, None]
    column = torch.arange(width, device=images.device)
    top, bottom, left, right = mix.box[:, :, None, None].unbind(1)
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)  # [B, H, W]
    share = torch.where(mix.cut[:, None, None], (~inside).float(), mix.share[:, None, None])
    share = share[:, None]  # [B, 1, H, W], of each pixel
    return images * share + images.flip(0) * (1 - share)


def mixed_targets(targets: Tensor, mix: Mix) -> Tensor:
    """Mix label distributions [B, K] as the images are."""
    share = mix.share[:, None]
    return targets * share + targets.flip(0) * (1 - share)


def larger_part(labels: Tensor, mix: Mix) -> Tensor:
    """Return each mixed image's label [B] of the larger part."""
    return torch.where(mix.share >= 0.5, labels, labels.flip(0))
