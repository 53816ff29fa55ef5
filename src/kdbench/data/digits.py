"""scikit-learn's handwritten digits: bundled with the library, so they are always there."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from kdbench.data.base import Dataset, Split, assemble

TEST = 360
SCALE = 4  # 8 x 8 pixels become 32 x 32


def digits(mean: list[float], std: list[float], pad: int, flip: bool, val_split: int) -> Dataset:
    """1,797 images of 8 x 8 in 10 classes, as uint8 [3, 32, 32]: 1,437 to train on, 360 to test.

    The library has no split of its own; this one is fixed and balanced over the classes. Grey
    values 0..16 become 0..255 in three equal channels, pixels are repeated, not smoothed.
    """
    bundled = load_digits()
    grey = torch.from_numpy(bundled.images).mul(255 / 16).round().to(torch.uint8)
    images = grey.repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2)
    images = images[:, None].expand(-1, 3, -1, -1)
    labels = torch.from_numpy(bundled.target).long()
    train, test = train_test_split(
        range(len(labels)), test_size=TEST, random_state=0, stratify=bundled.target
    )
    splits = (Split(images[rows].contiguous(), labels[rows]) for rows in (train, test))
    return assemble(
        "digits", 10, *splits, mean=mean, std=std, pad=pad, flip=flip, val_split=val_split
    )
