"""Encoded images to pixels of one size."""

import io

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import functional as T

from kdbench.errors import ConfigError, KdbenchError


def decode(content: bytes, name: str, image_size: int) -> Tensor:
    """An encoded image as uint8 RGB [3, S, S]: shorter side to S, then the middle square.

    Raises:
        KdbenchError: it is damaged; the line has its name.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        reason = str(error).split("<")[0].strip()
        raise KdbenchError(
            f"{name} is no readable image ({reason}): restore or remove it"
        ) from None
    square = T.center_crop(T.resize(pixels, image_size), [image_size, image_size])
    return T.pil_to_tensor(square)


def refuse_too_large(count: int, image_size: int, max_gib: float) -> None:
    """Refuse a data set that would not fit into memory.

    Raises:
        ConfigError: no such size.
        KdbenchError: it would take more than `max_gib` GiB.
    """
    if image_size < 1:
        raise ConfigError(f"dataset.image_size must be 1 or more, not {image_size}")
    gib = count * 3 * image_size**2 / 2**30
    if gib > max_gib:
        raise KdbenchError(
            f"{count} images of {image_size} x {image_size} take {gib:.1f} GiB of memory: lower "
            f"dataset.image_size, or raise dataset.max_gib={max_gib:g}"
        )


def stack(images: list[Tensor], labels: list[int]) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, S, S] and labels int64 [N]."""
    return torch.stack(images), torch.tensor(labels, dtype=torch.int64)
