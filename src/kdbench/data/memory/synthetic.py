"""Generated images, each class a pattern under noise, for tests and smoke runs."""

import numpy as np
import torch

from kdbench.data.base import Loaded, Split, assembled
from kdbench.errors import ConfigError

CELLS = 4  # a pattern is CELLS x CELLS colours


@assembled
def synthetic(
    num_classes: int,
    num_train: int,
    num_test: int,
    image_size: int,
    seed: int,
) -> Loaded:
    """Make a data set in which an image is its class's coarse 4 x 4 colour pattern plus noise.

    Both are raw bytes of a counter-based generator, in 0..127, so their sum is a pixel and the
    images are the same whatever the version of NumPy.

    Raises:
        ConfigError: no classes, no images, a negative seed, or images too small for the pattern.
    """
    sizes = {"num_classes": num_classes, "num_train": num_train, "num_test": num_test}
    for key, value in sizes.items():
        if value < 1:
            raise ConfigError(f"dataset.{key} must be 1 or more, not {value}")
    if image_size < CELLS or image_size % CELLS:
        raise ConfigError(f"dataset.image_size must be a multiple of {CELLS}, not {image_size}")
    if seed < 0:
        raise ConfigError(f"dataset.seed must be 0 or more, not {seed}")
    generator = np.random.Philox(key=seed)
    patterns = _noise(generator, (num_classes, 3, CELLS, CELLS))
    patterns = np.kron(patterns, np.ones((image_size // CELLS,) * 2, dtype=np.uint8))
    splits = []
    for count in (num_train, num_test):
        labels = np.arange(count) % num_classes
        images = patterns[labels] + _noise(generator, (count, 3, image_size, image_size))
        splits.append(Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))))
    return Loaded("synthetic", num_classes, *splits)


def _noise(generator: np.random.Philox, shape: tuple[int, ...]) -> np.ndarray:
    """Return uint8 noise of this shape, uniform in 0..127."""
    count = int(np.prod(shape))
    words = generator.random_raw(-(-count // 8)).astype("<u8", copy=False)
    return (words.view(np.uint8)[:count] >> 1).reshape(shape)
