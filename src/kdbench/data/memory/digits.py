"""scikit-learn's handwritten digits, which are bundled with the library."""

import torch
from sklearn.datasets import load_digits

from kdbench.data.base import Loaded, Split, assembled, hold_out

TEST = 360  # 36 a class
SCALE = 4  # 8 x 8 pixels become 32 x 32


@assembled
def digits() -> Loaded:
    """Load 1,797 images of 8 x 8 in 10 classes as uint8 [3, 32, 32]; 1,437 train, 360 test.

    The library has no split of its own; this one is fixed and balanced over the classes. Grey
    values 0..16 become 0..255 in three equal channels, pixels are repeated, not smoothed.
    """
    bundled = load_digits()
    grey = torch.from_numpy(bundled.images).mul(255 / 16).round().to(torch.uint8)
    images = grey.repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2)
    images = images[:, None].repeat(1, 3, 1, 1)
    train, test = hold_out(Split(images, torch.from_numpy(bundled.target).long()), TEST, 10)
    assert test is not None
    return Loaded("digits", 10, train, test)
