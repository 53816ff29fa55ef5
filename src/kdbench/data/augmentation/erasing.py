"""Random erasing of normalised images, as timm's RandomErasing with mode "pixel".

Zhong et al., "Random Erasing Data Augmentation", AAAI 2020, arXiv 1708.04896.
"""

import math

import numpy as np
import torch
from torch import Tensor

TRIES = 10  # draws of a rectangle before the image stays whole, as in timm
AREA = (0.02, 1 / 3)  # of the image
RATIO = (0.3, 1 / 0.3)  # of height to width
FRACTIONS = 3 + 2 * TRIES  # numbers in [0, 1) for each image: whether; row, column; area and ratio


def draw_boxes(probability: float, fractions: np.ndarray, height: int, width: int) -> Tensor:
    """Turn numbers [FRACTIONS, N] in [0, 1) into rectangles, on the CPU.

    Returns:
        [N, 4] int64: first and last row (excluded), first and last column (excluded); all 0 where
        nothing is erased.
    """
    applied, row, column = fractions[:3]
    areas, ratios = fractions[3 : 3 + TRIES], fractions[3 + TRIES :]
    area = (AREA[0] + (AREA[1] - AREA[0]) * areas) * height * width
    low, high = (math.log(ratio) for ratio in RATIO)
    ratio = np.exp(low + (high - low) * ratios)
    tall = np.rint(np.sqrt(area * ratio)).astype(np.int64)  # [TRIES, N]
    wide = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (tall < height) & (wide < width)
    chosen = fits.argmax(axis=0)[None]  # the first that fits
    tall, wide = (np.take_along_axis(side, chosen, axis=0)[0] for side in (tall, wide))
    top = (row * (height - tall + 1)).astype(np.int64)
    left = (column * (width - wide + 1)).astype(np.int64)
    box = np.stack([top, top + tall, left, left + wide], axis=1)
    erased = fits.any(axis=0) & (applied <= probability)
    return torch.from_numpy(np.where(erased[:, None], box, 0))


def erased(images: Tensor, box: Tensor, generator: torch.Generator) -> Tensor:
    """Fill a rectangle of each image [B, C, H, W] with normal noise; boxes [B, 4]."""
    row = torch.arange(images.shape[2], device=images.device)[:, None]
    column = torch.arange(images.shape[3], device=images.device)
    top, bottom, left, right = box[:, :, None, None].unbind(1)
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)  # [B, H, W]
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return torch.where(inside[:, None], noise, images)
