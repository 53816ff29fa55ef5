"""Image files to uint8 tensors of one size."""

import io
import stat
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import functional as TF

from kdbench.errors import ConfigError, KdbenchError

# More than 89 million pixels: Pillow only warns up to twice as many.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


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
    for error in decode_rows(images, sources, names):
        if error is not None:
            raise error


def decode_rows(
    images: Tensor, sources: Sequence[Path | bytes], names: Sequence[str]
) -> Iterator[KdbenchError | None]:
    """Decode each source into its row of `images` [n, 3, S, S]; gives, in order, what is wrong.

    Nothing more is decoded once the caller stops asking.
    """
    pixels = images.numpy()  # a worker's copy by torch would start threads of its own

    def work(row: int) -> KdbenchError | None:
        try:
            with naming(names[row]):
                pixels[row] = squared(read_rgb(sources[row]), pixels.shape[-1], pixels.shape[-1])
        except KdbenchError as error:
            return error
        return None

    pool = ThreadPoolExecutor()  # Pillow decodes without holding the interpreter's lock
    try:
        yield from pool.map(work, range(len(sources)))
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Whatever goes wrong with an image file inside is told in one line.

    Raises:
        KdbenchError: it is not an image that can be read.
    """
    try:
        yield
    except KdbenchError:
        raise
    except Exception as error:  # a broken file makes Pillow raise nearly anything
        raise KdbenchError(
            f"{name} is no readable image ({reason_of(error)}): restore or remove it"
        ) from None


def reason_of(error: Exception) -> str:
    """Why an image cannot be read, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "unknown format"  # Pillow's text holds an address in memory
    return " ".join(str(error).split())


def read_rgb(source: Path | str | bytes) -> Image.Image:
    """The whole image in RGB; grey and CMYK ones are converted.

    Raises:
        Exception: nearly any, where it cannot be read; see `naming`.
    """
    if not isinstance(source, bytes) and not stat.S_ISREG(Path(source).stat().st_mode):
        raise ValueError("not a regular file")  # a pipe would not end
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        if image.mode[0] in "IF":
            raise ValueError("its pixels have more than 8 bits")
        if image.mode == "RGB":
            image.load()
            return image  # convert would copy it: 7% of a decoded crop
        return image.convert("RGB")


def squared(image: Image.Image, shorter: int, size: int) -> np.ndarray:
    """uint8 [3, size, size]: shorter side to `shorter` (bilinear, antialiased), centre crop."""
    cropped = TF.center_crop(TF.resize(image, [shorter]), [size, size])
    return np.asarray(cropped).transpose(2, 0, 1)
