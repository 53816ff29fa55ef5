"""Decoding of image files to uint8 tensors of one size."""

import io
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from torch import Tensor

from kdbench.data.passed_over import printable
from kdbench.errors import ConfigError, KdbenchError
from kdbench.system.console import Console
from kdbench.system.files import open_regular

# These formats are read, whatever a file's name. Pillow knows forty more; for one it starts a
# program (EPS: Ghostscript), and others are obsolete.
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF")
DEEP = (";16", ";16B", ";16L", ";16N")  # Pillow's names of pixels with 16 bits a channel
ENLARGED = 2**24  # pixels of an image at most after scaling up
# The limit is 89 million pixels; Pillow only warns up to twice as many.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def allocate(count: int, image_size: int, max_gib: float) -> Tensor:
    """Allocate `count` images, uint8 [count, 3, image_size, image_size].

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


class Depth:
    """A reporter, once per data set, of images of 16 bits, which are scaled to 8."""

    def __init__(self) -> None:
        self._said = False
        self._lock = threading.Lock()

    def found(self, name: str) -> None:
        """Report an image of 16 bits."""
        with self._lock:
            said, self._said = self._said, True
        if not said:
            Console().message(
                f"{printable(name)} has 16 bits a channel: it is scaled to 8, as are all others "
                "that have"
            )


def decode_into(
    images: Tensor,
    sources: Sequence[Path | bytes],
    names: Sequence[str],
    depth: Depth | None = None,
) -> None:
    """Decode each source into its row of `images` [n, 3, S, S]; `names` are for messages.

    Raises:
        KdbenchError: a source cannot be read as an image; the first in order is named.
    """
    for error in decode_rows(images, sources, names, depth or Depth()):
        if error is not None:
            raise error


def decode_rows(
    images: Tensor, sources: Sequence[Path | bytes], names: Sequence[str], depth: Depth
) -> Iterator[KdbenchError | None]:
    """Decode each source into its row of `images` [n, 3, S, S]; yield its error, if any, in order.

    Nothing more is decoded once the caller stops asking.
    """
    pixels = images.numpy()  # a worker's copy by torch would start threads of its own

    def work(row: int) -> KdbenchError | None:
        try:
            with naming(names[row]):
                image = read_rgb(sources[row], lambda: depth.found(names[row]))
                pixels[row] = squared(image, pixels.shape[-1], pixels.shape[-1])
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
    """Turn any error with an image file into one line.

    Raises:
        KdbenchError: the file cannot be read as an image.
    """
    try:
        yield
    except KdbenchError:
        raise
    except Exception as error:  # a broken file makes Pillow raise many types
        raise KdbenchError(
            f"{name} is no readable image ({reason_of(error)}): restore or remove it"
        ) from None


def reason_of(error: Exception) -> str:
    """Say in one line why an image cannot be read."""
    if isinstance(error, UnidentifiedImageError):
        return "unknown format"  # Pillow's message has a memory address
    return " ".join(str(error).split())


def read_rgb(source: Path | str | bytes, deep: Callable[[], None]) -> Image.Image:
    """Read the whole image in RGB; grey and CMYK images are converted, 16 bits scaled to 8.

    `deep` is called for an image of 16 bits.

    Raises:
        Exception: of many types, where it cannot be read; see `naming`.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)
    with file, identified(file) as image:
        if is_deep(image):
            deep()
        if image.mode[0] in "IF":
            return eight_bits(image).convert("RGB")
        if image.mode == "RGB":
            image.load()
            return image  # convert would copy it: 7% of a decoded crop
        return image.convert("RGB")


def identified(file: BinaryIO, formats: tuple[str, ...] = FORMATS) -> ImageFile:
    """Open the image of a file, reading its header alone.

    Raises:
        ValueError: it has more pixels than may be decoded.
        Exception: of many types, where the file is no image.
    """
    image = Image.open(file, formats=formats)
    assert isinstance(image, ImageFile)
    limit = Image.MAX_IMAGE_PIXELS
    assert limit is not None
    if image.width * image.height > limit:  # Pillow's own warning is not per thread
        raise ValueError(f"{image.width} x {image.height} pixels are more than {limit:,}")
    return image


def is_deep(image: ImageFile) -> bool:
    """Return whether an unloaded image has 16 bits a channel; Pillow itself reduces colour ones."""
    if image.format not in ("PNG", "TIFF", "PPM") or not image.tile:
        return False
    layout = image.tile[0][3]  # "RGB;16B", or a tuple that begins so
    if image.format == "PPM" and isinstance(layout, tuple):
        return int(layout[1]) > 255  # the largest value
    return str(layout[0] if isinstance(layout, tuple) else layout).endswith(DEEP)


def eight_bits(image: Image.Image) -> Image.Image:
    """Reduce a grey image of 16 bits to the upper 8, as Pillow reads coloured ones.

    Raises:
        ValueError: its pixels have 32 bits, or are signed or fractions, so that white is undefined.
    """
    if image.format not in ("PNG", "PPM") and not image.mode.startswith("I;16"):
        raise ValueError("its pixels have more than 8 bits, and no range that is known")
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def squared(image: Image.Image, shorter: int, size: int) -> np.ndarray:
    """Scale the shorter side to `shorter` (bilinear, antialiased) and crop: uint8 [3, size, size].

    Raises:
        ValueError: the image is so long that it would take much more memory when scaled.
    """
    from torchvision.transforms import functional as TF  # slow to import

    check_scaled(*image.size, shorter)
    cropped = TF.center_crop(TF.resize(image, [shorter]), [size, size])
    return np.asarray(cropped).transpose(2, 0, 1)


def check_scaled(width: int, height: int, shorter: int) -> None:
    """Refuse strips of a few bytes that would take gigabytes when scaled up.

    Raises:
        ValueError: the image is such a strip.
    """
    low, high = sorted((width, height))
    if high * shorter**2 / low > max(low * high, ENLARGED, 4 * shorter**2):
        raise ValueError(
            f"its {width} x {height} pixels are too long a strip to be scaled to a shorter side of "
            f"{shorter}"
        )
