"""Small folders of images as people have them, JPEGs in the layouts of ImageNet among them."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdbench.data.base import Dataset
from kdbench.data.memory.image_folder import image_folder
from kdbench.data.memory.parquet import parquet
from kdbench.data.memory.tiny_imagenet import tiny_imagenet
from kdbench.data.streaming.imagenet import imagenet

FOLDERS = ("imagenet", "image_folder", "tiny_imagenet")
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


def load(name: str, folder: Path, **changed: object) -> Dataset:
    """The folder as one of four kinds of data set."""
    root, pads = str(folder), {"pad": 1, "flip": True, "image_size": 8, "max_gib": 1.0}
    match name:
        case "imagenet":
            settings = {"image_size": 32, "test_resize": 36, "flip": True, **SCALES, **changed}
            return imagenet(root, cache_dir=str(folder.parent / "cache"), **settings)
        case "image_folder":
            return image_folder(root, **{"test_split": None, **pads, **SCALES, **changed})
        case "parquet":
            settings = {"test_split": None, "label_column": None, **pads, **SCALES, **changed}
            return parquet(root, **settings)
    return tiny_imagenet(root, rotation=0.0, flip=True, on_corrupt="error", **SCALES, **changed)


def flatten(folder: Path) -> str:
    """Take the images of val out of their folders; Kaggle's file of their classes."""
    rows = ["ImageId,PredictionString"]
    for path in sorted((folder / "val").rglob("*.JPEG")):
        number = int(path.stem.rpartition("_")[2])
        box = f"{path.parent.name} 1 2 3 4 "
        rows.append(f"{path.stem},{box * (1 + number % 2)}")
        path.rename(folder / "val" / path.name)
    for name in CLASSES:
        (folder / "val" / name).rmdir()
    return "\r\n".join(rows) + "\r\n"


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


SCALES = {"mean": [0.5] * 3, "std": [0.25] * 3, "val_split": 0}
