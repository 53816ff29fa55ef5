"""Image files to uint8 tensors of one size."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import functional as TF

from kdbench.errors import ConfigError, KdbenchError


def allocate(count: int, image_size: int, max_gib: float) -> Tensor:
    """Room for `count` images, uint8 [count, 3, image_size, image_size].

    Raises:
        ConfigError: the size is below 1, or the images would take more than `max_gib` GiB.
    """
    if image_size < 1:
        raise ConfigError(f"dataset.image_size must be 1 or more, not {image_size}")
    gib = 3 * count * image_size**2 / 2**30
    if gib > max_gib:
        raise ConfigError(
            f"{count} images of {image_size} x {image_size} take {gib:.3g} GiB of memory, more "
            f"than dataset.max_gib={max_gib:g}: lower dataset.image_size or raise dataset.max_gib"
        )
    return torch.empty(count, 3, image_size, image_size, dtype=torch.uint8)


def decode_into(images: Tensor, sources: Sequence[Path | bytes], names: Sequence[str]) -> None:
    """Decode each source into its row of `images` [n, 3, S, S]; `names` are for error lines.

    Raises:
        KdbenchError: a source is not an image that can be read; the first in order is named.
    """

    pixels = images.numpy()  # a worker's copy by torch would start threads of its own

    def work(row: int) -> None:
        try:
            pixels[row] = _decode(sources[row], pixels.shape[-1])
        except Exception as error:  # a broken file makes Pillow raise nearly anything
            reason = " ".join(str(error).split())
            if isinstance(error, UnidentifiedImageError):
                reason = "unknown format"  # Pillow's text holds an address in memory
            raise KdbenchError(
                f"{names[row]} is no readable image ({reason}): restore or remove it"
            ) from None

    pool = ThreadPoolExecutor()  # Pillow decodes without holding the interpreter's lock
    try:
        for _ in pool.map(work, range(len(sources))):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(source: Path | bytes, size: int) -> np.ndarray:
    """uint8 [3, size, size]: shorter side to `size` (bilinear, antialiased), centre crop."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        if image.mode[0] in "IF":
            raise ValueError("its pixels have more than 8 bits")
        rgb = image.convert("RGB")
    cropped = TF.center_crop(TF.resize(rgb, [size]), [size, size])
    return np.asarray(cropped).transpose(2, 0, 1)
