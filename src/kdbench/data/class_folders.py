"""ImageNet in folders train/ and val/: a folder a class, a tar a class, or Kaggle's flat val.

All layouts give the same set with the same fingerprint: images are called SPLIT/CLASS/FILE.
"""

import csv
import io
from pathlib import Path
from typing import NamedTuple

import torch

from kdbench.data.decoding.decode import Depth
from kdbench.data.layout import (
    Files,
    check_classes,
    entries_of,
    is_image,
    reading,
    scan,
    size_of,
    some,
)
from kdbench.data.passed_over import PassedOver
from kdbench.data.streaming.shards import class_tars, list_class_tars
from kdbench.data.streaming.sources import FolderSource, Listing
from kdbench.errors import KdbenchError
from kdbench.system.files import open_regular

SOLUTION = "LOC_val_solution.csv"  # of Kaggle's ImageNet: ImageId,PredictionString
ABOVE = 3  # levels above train/ and val/ to search: Kaggle has ILSVRC/Data/CLS-LOC/val
LARGEST = 2**26  # bytes of SOLUTION; Kaggle's has 2.6 million


class Found(NamedTuple):
    """A split, its classes in the order of their numbers."""

    classes: list[str]
    listing: Listing


def list_folders(folder: Path, cache_dir: Path) -> dict[str, Listing]:
    """List the images of train/ and val/; other files there are reported in one line.

    Raises:
        KdbenchError: a class is empty or only on one side, or a split is in no known layout.
    """
    passed, depth = PassedOver(), Depth()
    found = {
        split: find_split(folder, split, cache_dir, passed, depth) for split in ("train", "val")
    }
    check_classes(folder, found["train"].classes, found["val"].classes, "val")
    passed.say(folder)
    return {split: one.listing for split, one in found.items()}


def find_split(
    folder: Path, split: str, cache_dir: Path, passed: PassedOver, depth: Depth
) -> Found:
    """Find one split, in any known layout.

    Raises:
        KdbenchError: its layout is unknown, or it cannot be read.
    """
    classes, loose = entries_of(folder / split, PassedOver())  # counted elsewhere
    if not classes and (tars := class_tars(folder / split)):
        entries_of(folder / split, passed)
        for name in set(loose) - {path.name for path in tars}:
            passed.no_image(f"{split}/{name}")
        listing = list_class_tars(split, tars, cache_dir, passed, depth)
        return Found([path.stem for path in tars], listing)
    if not classes and split == "val" and any(map(is_image, loose)):
        return flat(folder, loose, passed, depth)
    return by_class(folder, split, scan(folder / split, passed), {}, depth)


def by_class(
    folder: Path, split: str, files: Files, flat_names: dict[str, str], depth: Depth
) -> Found:
    """Make a split of files by class; `flat_names` are their paths if not in folders of classes."""
    classes = sorted(files)
    names, sizes = zip(*(file for name in classes for file in files[name]), strict=True)
    counts = torch.tensor([len(files[name]) for name in classes])
    labels = torch.arange(len(classes)).repeat_interleave(counts)
    called = [f"{split}/{name}" for name in names]
    places = [f"{split}/{flat_names[name]}" for name in names] if flat_names else called
    return Found(classes, Listing(FolderSource(folder, called, sizes, places, depth), labels))


def flat(folder: Path, loose: list[str], passed: PassedOver, depth: Depth) -> Found:
    """Make a split from a val without class folders, by the classes in Kaggle's file.

    Raises:
        KdbenchError: the file is missing or cannot be read, or names other images.
    """
    path = find_solution(folder)
    if path is None:
        raise KdbenchError(
            f"{folder / 'val'} has no class folders: sort its images into val/CLASS/*.JPEG, or put "
            f"Kaggle's {SOLUTION} beside it; it holds {some(loose)}"
        )
    classes = read_solution(path)
    images: dict[str, tuple[str, int]] = {}
    for name in loose:
        if is_image(name) and Path(name).stem in images:
            raise KdbenchError(f"{folder / 'val'} has two images {Path(name).stem}: remove one")
        if is_image(name):
            with reading(folder / "val"):
                file = folder / "val" / name
                images[Path(name).stem] = name, size_of(file, file.stat())
        elif name != SOLUTION:
            passed.no_image(f"val/{name}")
    entries_of(folder / "val", passed)
    if odd := sorted(images.keys() ^ classes.keys()):
        raise KdbenchError(
            f"{path} and {folder / 'val'} differ, in {odd[0]} first: copy both again"
        )
    found: Files = {}
    flat_names = {}
    for stem, (name, size) in sorted(images.items(), key=lambda item: item[1][0]):
        called = f"{classes[stem]}/{name}"
        flat_names[called] = name
        found.setdefault(classes[stem], []).append((called, size))
    return by_class(folder, "val", found, flat_names, depth)


def find_solution(folder: Path) -> Path | None:
    """Find Kaggle's file: in val/, beside it, or above, as in Kaggle's archive."""
    places = (folder / "val", folder, *folder.parents[:ABOVE])
    return next((path for place in places if (path := place / SOLUTION).is_file()), None)


def read_solution(path: Path) -> dict[str, str]:
    """Read the class of each image, by the image's name without its ending.

    A row is ImageId,PredictionString; the latter repeats a class and a box for each object.

    Raises:
        KdbenchError: it cannot be read, or a row gives no class, or one image has two.
    """
    classes: dict[str, str] = {}
    try:
        with open_regular(path) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError("it is too large")
        rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        for row in rows:
            image, said = row["ImageId"].strip(), row["PredictionString"].split()
            stem = Path(image).stem if is_image(image) else image
            name = said[0]
            if "/" in name or classes.setdefault(stem, name) != name:
                raise ValueError(f"{image} has no class, or two")
    except (OSError, ValueError, KeyError, IndexError, AttributeError, csv.Error):
        raise KdbenchError(
            f"{path} is not Kaggle's (rows of ImageId,PredictionString, the latter beginning with "
            "a class): fetch it again"
        ) from None
    return classes
