"""Image files to uint8 tensors of one size."""

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

# What is read, whatever a file is called. Pillow knows forty more formats; for one it starts a
# program (EPS: Ghostscript), and others nobody looks at any more.
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF")
DEEP = (";16", ";16B", ";16L", ";16N")  # how Pillow calls pixels of 16 bits a channel
ENLARGED = 2**24  # pixels that an image may have once it is scaled up
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


class Depth:
    """Says once of a data set that it has images of 16 bits, which are scaled to 8."""

    def __init__(self) -> None:
        self._said = False
        self._lock = threading.Lock()

    def found(self, name: str) -> None:
        """An image of 16 bits."""
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
    """Decode each source into its row of `images` [n, 3, S, S]; `names` are for what is said.

    Raises:
        KdbenchError: a source is not an image that can be read; the first in order is named.
    """
    for error in decode_rows(images, sources, names, depth or Depth()):
        if error is not None:
            raise error


def decode_rows(
    images: Tensor, sources: Sequence[Path | bytes], names: Sequence[str], depth: Depth
) -> Iterator[KdbenchError | None]:
    """Decode each source into its row of `images` [n, 3, S, S]; gives, in order, what is wrong.

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


def read_rgb(source: Path | str | bytes, deep: Callable[[], None]) -> Image.Image:
    """The whole image in RGB; grey and CMYK ones are converted, 16 bits scaled to 8.

    `deep` is called where it has 16 bits.

    Raises:
        Exception: nearly any, where it cannot be read; see `naming`.
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
    """The image of a file, of which only the header was read.

    Raises:
        ValueError: it has more pixels than may be decoded.
        Exception: nearly any, where it is none.
    """
    image = Image.open(file, formats=formats)
    assert isinstance(image, ImageFile)
    limit = Image.MAX_IMAGE_PIXELS
    assert limit is not None
    if image.width * image.height > limit:  # the warning is an error, but for all threads or none
        raise ValueError(f"{image.width} x {image.height} pixels are more than {limit:,}")
    return image


def is_deep(image: ImageFile) -> bool:
    """Whether an image that is not loaded yet has 16 bits a channel; Pillow cuts colours itself."""
    if image.format not in ("PNG", "TIFF", "PPM") or not image.tile:
        return False
    layout = image.tile[0][3]  # "RGB;16B", or a tuple that begins so
    if image.format == "PPM" and isinstance(layout, tuple):
        return int(layout[1]) > 255  # the largest value
    return str(layout[0] if isinstance(layout, tuple) else layout).endswith(DEEP)


def eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits by the upper 8, as Pillow reads coloured ones.

    Raises:
        ValueError: its pixels are of 32 bits, or signed, or fractions: what is white, is not said.
    """
    if image.format not in ("PNG", "PPM") and not image.mode.startswith("I;16"):
        raise ValueError("its pixels have more than 8 bits, and no range that is known")
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def squared(image: Image.Image, shorter: int, size: int) -> np.ndarray:
    """uint8 [3, size, size]: shorter side to `shorter` (bilinear, antialiased), centre crop.

    Raises:
        ValueError: it is so long that it would take much more memory than it does.
    """
    from torchvision.transforms import functional as TF  # slow to import

    check_scaled(*image.size, shorter)
    cropped = TF.center_crop(TF.resize(image, [shorter]), [size, size])
    return np.asarray(cropped).transpose(2, 0, 1)


def check_scaled(width: int, height: int, shorter: int) -> None:
    """Refuse strips of a few bytes that take gigabytes once their shorter side is enlarged.

    Raises:
        ValueError: it is one.
    """
    low, high = sorted((width, height))
    if high * shorter**2 / low > max(low * high, ENLARGED, 4 * shorter**2):
        raise ValueError(
            f"its {width} x {height} pixels are too long a strip to be scaled to a shorter side of "
            f"{shorter}"
        )
