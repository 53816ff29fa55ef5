"""Small folders of JPEGs in the layouts of ImageNet and Tiny-ImageNet."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ("n01", "n02", "n03")
MODES = ("RGB", "RGB", "L", "CMYK")  # ImageNet has a few of the last two


def photograph(number: int, width: int, height: int) -> Image.Image:
    """A smooth picture with some noise, whose colour tells its class."""
    random = np.random.Philox(key=number).random_raw(height * width * 3).astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    ramp = np.stack([x * 255 // width, y * 255 // height, 0 * x + 80 * (number % 3)], axis=2)
    return Image.fromarray((ramp * 3 // 4 + random.reshape(height, width, 3) % 64).astype(np.uint8))


def write_class_folders(folder: Path, count: int, size: tuple[int, int], inner: str = "") -> None:
    """`count` pictures in folder/CLASS/inner; the class of picture i is i mod 3."""
    for number in range(count):
        name = CLASSES[number % 3]
        path = folder / name / inner / f"{name}_{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = MODES[number // 3 % len(MODES)]
        photograph(number, size[0] + number, size[1]).convert(mode).save(path, quality=90)


def truncate(path: Path) -> None:
    """Cut a file off in the middle of its pixels."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])


def real(folder: str) -> Path:
    """A folder below KDBENCH_DATA; skips where it is not there."""
    root = os.environ.get("KDBENCH_DATA")
    if root is None or not Path(root, folder).is_dir():
        pytest.skip(f"no {folder} in KDBENCH_DATA ({root})")
    return Path(root, folder)
