"""Small rotations, as RandomRotation and RandomHorizontalFlip make them of a PIL image."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kdbench.data.augmentation.views import CONTINUUM
from kdbench.errors import ConfigError

FIXED = 2**16  # Pillow steps through the source in fixed point of 16 bits


@dataclass(frozen=True)
class Rotations:
    """Rotations about the centre by an angle uniform in -degrees to degrees, each flipped or not.

    The nearest pixel is taken, and what lies outside is black: torchvision's RandomRotation with
    its defaults, to the bit. Of a view's number the lowest bit is the flip, the upper 53 the angle.

    Raises:
        ConfigError: an angle that is not from 0 to 180.
    """

    finite: ClassVar[bool] = False
    pad: ClassVar[int] = 1  # position 0 of a plane is black, for pixels from outside
    count: ClassVar[int] = CONTINUUM
    degrees: float
    flip: bool

    def __post_init__(self) -> None:
        """Check the angle."""
        if not 0 <= self.degrees <= 180:
            raise ConfigError(f"dataset.rotation must be 0 to 180 degrees, not {self.degrees}")

    def decode(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Return each view's angle in degrees (counter-clockwise) and flip (0 or 1).

        Shapes: view [B] -> [B] float64 and [B].
        """
        fraction = (view >> 10).double() * 2.0**-53
        return self.degrees * (2 * fraction - 1), (view & 1) * int(self.flip)

    def positions(self, view: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the positions of each view's pixels in a plane with a border of 1: [B, H, W].

        Args:
            view: [B].
            rows: [H], where each row of the plane starts.
            columns: [W], 0 to W - 1.
        """
        angle, flip = self.decode(view)
        height, width = len(rows), len(columns)
        cos, sin = torch.cos(angle * (math.pi / 180)), torch.sin(angle * (math.pi / 180))
        y = torch.arange(height, device=view.device)[:, None]  # [H, 1]
        x = (columns + flip[:, None] * (width - 1 - 2 * columns))[:, None]  # [B, 1, W]
        # The source of pixel (x, y) is (cos x - sin y + left, sin x + cos y + top), about the
        # centre, and half a pixel on: Pillow's Image.rotate and its affine transform.
        middle_x, middle_y = 0.5 - width / 2, 0.5 - height / 2
        left = cos * middle_x - sin * middle_y + width / 2
        top = sin * middle_x + cos * middle_y + height / 2
        cos, sin, minus_sin, left, top = (
            (value * FIXED + 0.5).floor().long()[:, None, None]
            for value in (cos, sin, -sin, left, top)
        )
        source_x = (left + minus_sin * y + cos * x) >> 16
        source_y = (top + cos * y + sin * x) >> 16
        inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
        return torch.where(inside, (source_y + 1) * (width + 2) + source_x + 1, 0)
