"""Images without files: a pattern a class under noise, for tests and smoke runs."""

import numpy as np
import torch

from kdbench.data.base import Dataset, Split, assemble
from kdbench.errors import ConfigError


def synthetic(
    num_classes: int,
    num_train: int,
    num_test: int,
    image_size: int,
    seed: int,
    mean: list[float],
    std: list[float],
    pad: int,
    flip: bool,
    val_split: int,
) -> Dataset:
    """Each class is a coarse 4 x 4 colour pattern; an image is its class's pattern and noise.

    Raises:
        ConfigError: no classes, no images, or images too small for the pattern.
    """
    sizes = {"num_classes": num_classes, "num_train": num_train, "num_test": num_test}
    for key, value in sizes.items():
        if value < 1:
            raise ConfigError(f"dataset.{key} must be 1 or more, not {value}")
    if image_size < 4 or image_size % 4:
        raise ConfigError(f"dataset.image_size must be a multiple of 4, not {image_size}")
    words = np.random.Philox(key=seed)
    patterns = words.random_raw(num_classes * 48).reshape(num_classes, 3, 4, 4) % 128
    cell = np.ones((image_size // 4,) * 2, dtype=np.uint64)

    def split(count: int) -> Split:
        labels = np.arange(count) % num_classes
        noise = words.random_raw(count * 3 * image_size**2) % 128
        images = np.kron(patterns[labels], cell) + noise.reshape(count, 3, image_size, image_size)
        return Split(
            torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels.astype(np.int64))
        )

    train, test = split(num_train), split(num_test)
    return assemble(
        "synthetic",
        num_classes,
        train,
        test,
        mean=mean,
        std=std,
        pad=pad,
        flip=flip,
        val_split=val_split,
    )
