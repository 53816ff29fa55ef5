"""Folders of images as people have them."""

import io
import tarfile
from pathlib import Path

from kdbench.data.base import Dataset
from kdbench.data.memory.image_folder import image_folder
from kdbench.data.memory.parquet import parquet
from kdbench.data.memory.tiny_imagenet import tiny_imagenet
from kdbench.data.streaming.imagenet import imagenet
from support.photographs import CLASSES

FOLDERS = ("imagenet", "image_folder", "tiny_imagenet")


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
