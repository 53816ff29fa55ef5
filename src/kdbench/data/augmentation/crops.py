"""Random crops of any size and place, as torchvision's RandomResizedCrop makes them."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from kdbench.data.augmentation.views import CONTINUUM

TRIES = 10  # draws of RandomResizedCrop before it takes the centre
SCALE = (0.08, 1.0)  # of the area: RandomResizedCrop's defaults, torchvision's reference recipe
RATIO = (3 / 4, 4 / 3)  # of width to height


class Box(NamedTuple):
    """A crop of an image in pixels, with or without mirroring."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


@dataclass(frozen=True)
class ResizedCrops:
    """RandomResizedCrop and RandomHorizontalFlip: crops of any size and place.

    A view's number keys a counter-based generator of its own. Its words are: the flip, area and
    ratio of each try, row and column. A fraction is the upper 53 bits of its word.
    """

    finite: ClassVar[bool] = False
    pad: ClassVar[int] = 0
    count: ClassVar[int] = CONTINUUM
    flip: bool

    def box(self, view: int, height: int, width: int) -> Box:
        """Return the crop of a view from an image of this size, by torchvision's rule."""
        words = np.random.Philox(key=view).random_raw(2 * TRIES + 3)
        flip = self.flip and bool(words[0] & np.uint64(1))
        fractions = ((words[1:] >> np.uint64(11)) * 2.0**-53).tolist()
        row, column = fractions[-2:]
        low, high = (math.log(ratio) for ratio in RATIO)
        for area, shape in zip(fractions[:-2:2], fractions[1:-2:2], strict=True):
            target = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * area)
            ratio = math.exp(low + (high - low) * shape)
            w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = int(row * (height - h + 1)), int(column * (width - w + 1))
                return Box(top, left, h, w, flip)
        w = min(width, round(height * RATIO[1]))
        h = min(height, round(width / RATIO[0]))
        return Box((height - h) // 2, (width - w) // 2, h, w, flip)
