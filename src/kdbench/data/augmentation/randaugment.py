"""RandAugment and Cutout on a whole uint8 batch at once, on its device.

This is the variant that MLKD's released code takes from FixMatch implementations: 14
operations, each with a magnitude drawn uniformly from its own range (the release's M = 10 is
stored and never read), and always a Cutout at the end. The arithmetic is Pillow's, in its order and
precision, so that a pixel is the same here, on a GPU and in the release's loader.

Nothing here draws, waits for the device or copies from the host. Source of the list and its ranges:
mdistiller/dataset/cifar100.py of peanutshu11/Multi-Level-Logit-Distillation, a fork of the release,
and of sunshangquan/logit-standardization-KD; the two agree.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

RANGES = {
    "autocontrast": (0.0, 1.0),  # without magnitude, as equalize and identity
    "brightness": (0.05, 0.95),
    "color": (0.05, 0.95),
    "contrast": (0.05, 0.95),
    "equalize": (0.0, 1.0),
    "identity": (0.0, 1.0),
    "posterize": (4.0, 8.0),  # bits kept, cut to an integer
    "rotate": (-30.0, 30.0),  # degrees, counterclockwise
    "sharpness": (0.05, 0.95),
    "shear_x": (-0.3, 0.3),
    "shear_y": (-0.3, 0.3),
    "solarize": (0.0, 256.0),  # from this grey level on pixels are inverted
    "translate_x": (-0.3, 0.3),  # of the width
    "translate_y": (-0.3, 0.3),  # of the height
}
OPERATIONS = tuple(RANGES)
SLOTS = 2  # N: operations applied in sequence
CUTOUT_SIDE = 0.5  # of the width, at most
CUTOUT_COLOUR = (125, 123, 114)  # the mean of CIFAR, whatever the data set
FRACTIONS = SLOTS + 3  # numbers in [0, 1) for each image: magnitudes; Cutout's side, column, row


class Draws(NamedTuple):
    """The operations on each image; N images, S slots."""

    op: Tensor  # [N, S] int64, position in OPERATIONS
    value: Tensor  # [N, S] float64, its magnitude
    box: Tensor  # [N, 4] int64: first column and row, last column and row of the Cutout


def draws_from(op: np.ndarray, fractions: np.ndarray, height: int, width: int) -> Draws:
    """Draws on the CPU from operations [S, N] int64 and numbers [FRACTIONS, N] in [0, 1).

    The centre of the Cutout lies from 1 to the side and not from 0, because the release calls
    numpy.random.uniform(side), whose argument is the lower end; its last column and row belong to
    it, as to every rectangle of Pillow.
    """
    low, high = np.array(list(RANGES.values())).T
    value = low[op] + (high - low)[op] * fractions[: len(op)]
    size, column, row = fractions[len(op) :]
    side = CUTOUT_SIDE * size * width
    first = [
        np.maximum(length + (1 - length) * centre - side / 2, 0).astype(np.int64)
        for length, centre in ((width, column), (height, row))
    ]
    last = [
        np.minimum(start + side, length).astype(np.int64)
        for start, length in zip(first, (width, height), strict=True)
    ]
    box = np.stack([*first, *last], axis=1)
    return Draws(torch.from_numpy(op.T), torch.from_numpy(value.T), torch.from_numpy(box))


def randaugment(images: Tensor, draws: Draws) -> Tensor:
    """Apply each image's operations in sequence, then its Cutout.

    Shapes: images [B, C, H, W] uint8, draws of B images -> [B, C, H, W] uint8. Each slot looks
    pixels up in a table, mixes them with another image and moves them; where an operation is none
    of the three kinds, that part of the slot leaves the image as it is. Images without three
    channels are grey: "color" leaves them as they are.
    """
    for op, value in zip(draws.op.unbind(1), draws.value.unbind(1), strict=True):
        images = _look_up(images, op, value)
        images = _mix(images, op, value)
        images = _move(images, op, value)
    return _cut_out(images, draws.box)


def _is(op: Tensor, name: str) -> Tensor:
    return op == OPERATIONS.index(name)


def _luminance(images: Tensor) -> Tensor:
    """Return Rec. 601 luminance in Pillow's integers, [B, 1, H, W] int32."""
    images = images.int()
    if images.shape[1] != 3:
        return images  # grey already
    red, green, blue = images.split(1, dim=1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _blend(base: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Return base + factor (other - base), in float32 and cut to integers as Pillow's blend."""
    return (base + factor.float() * (other - base)).long()


def _look_up(images: Tensor, op: Tensor, value: Tensor) -> Tensor:
    """Apply the operations that map each grey level to a new one."""
    flat = images.flatten(2).long()  # [B, C, H * W]
    level = torch.arange(256, device=images.device).expand(*flat.shape[:2], -1)  # [B, C, 256]
    op, value = op[:, None, None], value[:, None, None]
    cut = torch.where(_is(op, "posterize"), 8 - value.long(), 0)
    tables = {
        "autocontrast": _autocontrast(flat, level),
        "brightness": _blend(torch.zeros_like(level), level, value),
        "contrast": _blend(_mean_level(images), level, value),
        "equalize": _equalize(flat, level),
        "posterize": (level >> cut) << cut,
        "solarize": torch.where(level < value, level, 255 - level),
    }
    table = level
    for name, other in tables.items():
        table = torch.where(_is(op, name), other, table)
    return table.gather(2, flat).to(torch.uint8).view_as(images)


def _autocontrast(flat: Tensor, level: Tensor) -> Tensor:
    """Stretch from the darkest and brightest level to 0 and 255; in float64 as Python's floats."""
    low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
    span = (high - low).clamp(min=1).double()
    scale = torch.full_like(span, 255) / span  # 255 / span would be 255 times its reciprocal
    stretched = (level * scale - low * scale).clamp(0, 255).long()
    return torch.where(high > low, stretched, level)


def _mean_level(images: Tensor) -> Tensor:
    """Return the mean luminance, rounded: [B, 1, 1] int64."""
    grey = _luminance(images).long().flatten(2)
    count = grey.shape[2]
    return (2 * grey.sum(2, keepdim=True) + count) // (2 * count)


def _equalize(flat: Tensor, level: Tensor) -> Tensor:
    """Equalise the histogram as Pillow does."""
    counts = torch.zeros_like(level).scatter_add_(2, flat, torch.ones_like(flat))
    brightest = counts.gather(2, flat.amax(2, keepdim=True))
    step = (flat.shape[2] - brightest) // 255
    below = counts.cumsum(2) - counts
    equalized = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, equalized, level)


def _mix(images: Tensor, op: Tensor, value: Tensor) -> Tensor:
    """Apply the operations that mix an image with its grey or its smooth version."""
    op, value = op[:, None, None, None], value[:, None, None, None]
    color, sharpness = _is(op, "color"), _is(op, "sharpness")
    pixels = images.int()
    base = torch.where(color, _luminance(images), pixels)
    base = torch.where(sharpness, _smooth(pixels), base)
    factor = torch.where(color | sharpness, value, 1.0)
    return _blend(base, pixels, factor).to(torch.uint8)


def _smooth(pixels: Tensor) -> Tensor:
    """Pillow's SMOOTH: the 3x3 mean with weight 5 of 13 on the centre; the border stays."""
    rows = pixels[..., :-2, :] + pixels[..., 1:-1, :] + pixels[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * pixels[..., 1:-1, 1:-1]
    smooth = pixels.clone()
    smooth[..., 1:-1, 1:-1] = (2 * total + 13) // 26  # total / 13, rounded
    return smooth


def _move(images: Tensor, op: Tensor, value: Tensor) -> Tensor:
    """Apply the operations that move pixels: the nearest source pixel, black from outside.

    Positions are in fixed point with 16 fractional bits, as in Pillow, so that devices do not round
    differently.
    """
    height, width = images.shape[2:]
    column = torch.arange(width, device=images.device)
    row = torch.arange(height, device=images.device)[:, None]
    along_x, along_y = (
        ((at + by_column * column + by_row * row) >> 16)  # [B, H, W]
        for by_column, by_row, at in _affine(op, value, height, width)
    )
    inside = (along_x >= 0) & (along_x < width) & (along_y >= 0) & (along_y < height)
    source = along_y.clamp(0, height - 1) * width + along_x.clamp(0, width - 1)
    source = source.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    moved = images.flatten(2).gather(2, source).view_as(images)
    return torch.where(inside[:, None], moved, 0).to(torch.uint8)


def _affine(op: Tensor, value: Tensor, height: int, width: int) -> list[tuple[Tensor, ...]]:
    """Return the source of pixel (x, y): for each axis the factors of x and y, and the origin.

    Each is [B, 1, 1] int64 with 16 fractional bits. A shift alone is cut and not rounded to them,
    because Pillow computes it in floating point.
    """
    op, value = op[:, None, None], value[:, None, None]
    turn = torch.where(_is(op, "rotate"), value, 0.0).deg2rad()
    cosine, sine = turn.cos(), turn.sin()
    shift_x, shift_y = _is(op, "translate_x"), _is(op, "translate_y")
    by_row = torch.where(_is(op, "shear_x"), value, -sine)
    by_column = torch.where(_is(op, "shear_y"), value, sine)
    middle_x = width / 2 - cosine * width / 2 + sine * height / 2  # rotations fix the centre
    middle_y = height / 2 - sine * width / 2 - cosine * height / 2
    at_x = torch.where(shift_x, value * width, middle_x)
    at_y = torch.where(shift_y, value * height, middle_y)
    half = torch.where(shift_x | shift_y, 0.0, 0.5)
    return [
        tuple(
            (number * 65536 + half).floor().long()
            for number in (of_x, of_y, at + of_x / 2 + of_y / 2)
        )
        for of_x, of_y, at in ((cosine, by_row, at_x), (by_column, cosine, at_y))
    ]


def _cut_out(images: Tensor, box: Tensor) -> Tensor:
    """Fill a rectangle of each image."""
    column = torch.arange(images.shape[3], device=images.device)
    row = torch.arange(images.shape[2], device=images.device)[:, None]
    left, top, right, bottom = box[:, :, None, None].unbind(1)
    inside = (column >= left) & (column <= right) & (row >= top) & (row <= bottom)  # [B, H, W]
    colours = CUTOUT_COLOUR if images.shape[1] == 3 else (CUTOUT_COLOUR[1],) * images.shape[1]
    channels = zip(images.unbind(1), colours, strict=True)
    return torch.stack([channel.masked_fill(inside, grey) for channel, grey in channels], dim=1)
