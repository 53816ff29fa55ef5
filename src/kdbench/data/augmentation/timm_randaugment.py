"""RandAugment by a string of timm's form, from given random numbers.

The operations are timm's own, on Pillow images one after another on the host. They draw from the
generators of Python and NumPy, which are seeded anew for every image by its place in the epoch, and
afterwards left as they were: so an image is the same after a resume and in every cohort.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment, rand_augment_transform
from torch import Tensor

from kdbench.errors import ConfigError, first_line
from kdbench.seeds import derive


def policy_of(text: str, mean: Sequence[float], size: int) -> RandAugment:
    """Return timm's RandAugment that a string such as "rand-m9-mstd0.5-inc1" describes.

    Args:
        text: in timm's form.
        mean: of the normalisation; pixels from outside get this colour, as in timm.
        size: the side of an image in pixels.

    Raises:
        ConfigError: the string is not of timm's form, or images have no three channels.
    """
    if len(mean) != 3:
        raise ConfigError("schedule.rand_augment is for images of 3 channels: set it to null")
    colour = tuple(min(255, round(255 * value)) for value in mean)
    settings = {"translate_const": int(size * 0.45), "img_mean": colour}
    try:
        return rand_augment_transform(text, settings)
    except Exception as error:  # an assertion, a number that is none, a key that is not there
        raise ConfigError(
            f"schedule.rand_augment='{text}' is not of timm's form ({first_line(error)}): write "
            "rand-m9-mstd0.5-inc1 or the like"
        ) from error


class EpochRandAugment:
    """RandAugment of an epoch's images."""

    def __init__(self, policy: RandAugment, seed: int, epoch: int) -> None:
        self.policy = policy
        self.seed = derive(seed, "rand_augment", epoch)

    def __call__(self, crops: Tensor, places: Tensor) -> Tensor:
        """Change uint8 crops [B, 3, H, W] at `places` [B] of the epoch's order."""
        pixels = crops.permute(0, 2, 3, 1).cpu().numpy()
        changed = np.empty_like(pixels)
        with own_generators():
            for row, place in enumerate(places.tolist()):
                seed = derive(self.seed, place)
                random.seed(seed)
                np.random.seed(seed % 2**32)
                changed[row] = np.asarray(self.policy(Image.fromarray(pixels[row])))
        return torch.from_numpy(changed).permute(0, 3, 1, 2).contiguous().to(crops.device)


@contextmanager
def own_generators() -> Iterator[None]:
    """Leave the generators of Python and NumPy as they were."""
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
