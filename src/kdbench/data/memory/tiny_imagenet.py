"""Tiny-ImageNet: 200 classes of 64 x 64, in its original layout or sorted into classes."""

from pathlib import Path
from typing import Literal

import torch

from kdbench.data.augmentation.rotation import Rotations
from kdbench.data.base import Dataset, Split, fewer, hold_out
from kdbench.data.decoding.decode import Depth, allocate, decode_rows
from kdbench.data.layout import Files, check_classes, entries_of, find_layout, image_files, scan
from kdbench.data.passed_over import PassedOver, printable
from kdbench.errors import KdbenchError
from kdbench.system.console import Console
from kdbench.system.files import open_regular

SIZE = 64
MAX_GIB = 4.0  # the whole set takes 1.3
NAMED = 5  # images that a line names at most
BOXES = "_boxes.txt"  # ending of the file of boxes in each class of train


def tiny_imagenet(
    root: str,
    on_corrupt: Literal["error", "skip"],
    mean: list[float],
    std: list[float],
    rotation: float,
    flip: bool,
    val_split: int,
    fraction: float = 1.0,
    long_tail: float = 1.0,
) -> Dataset:
    """Load 100,000 training and 10,000 test images [3, 64, 64], if the set is complete.

    The files are train/WNID/images/*.JPEG or train/WNID/*.JPEG, and val/images/*.JPEG with
    val/val_annotations.txt, or val sorted as train is. Classes are numbered in the order of their
    sorted names, as torchvision's ImageFolder does.

    Raises:
        KdbenchError: the folders are not there, a class is empty or only on one side, annotations
            and images do not fit, or an image cannot be read and `on_corrupt` is "error".
    """
    folder = find_layout("tiny_imagenet", root, ("tiny-imagenet-200",))
    passed = PassedOver(BOXES)
    train = scan(folder / "train", passed)
    classes = sorted(train)
    check_names(folder, classes)
    val = scored_files(folder / "val", passed)
    check_classes(folder, classes, list(val), "val")
    passed.say(folder)
    skip, depth = on_corrupt == "skip", Depth()
    splits = [
        read_split(folder / name, [files[c] for c in classes], skip, depth)
        for name, files in (("train", train), ("val", val))
    ]
    kept, held = hold_out(splits[0], val_split, len(classes))
    kept = fewer(kept, len(classes), fraction, long_tail)
    scales = tuple(mean), tuple(std)
    views = Rotations(rotation, flip)
    return Dataset("tiny_imagenet", len(classes), kept, splits[1], held, *scales, views)


def read_split(
    folder: Path, by_class: list[list[tuple[str, int]]], skip: bool, depth: Depth
) -> Split:
    """Read the images of each class in turn; unreadable ones are left out if `skip`.

    Raises:
        KdbenchError: an image cannot be read, without `skip`.
    """
    files = [folder / name for names in by_class for name, _ in names]
    counts = torch.tensor([len(names) for names in by_class])
    labels = torch.arange(len(by_class)).repeat_interleave(counts)
    images = allocate(len(files), SIZE, MAX_GIB)
    fine = torch.ones(len(files), dtype=torch.bool)
    names = [str(file) for file in files]
    for row, error in enumerate(decode_rows(images, files, names, depth)):
        if error is not None and not skip:
            raise KdbenchError(f"{error}, or add dataset.on_corrupt=skip")
        fine[row] = error is None
    if skipped := [
        printable(file.name) for file, good in zip(files, fine, strict=True) if not good
    ]:
        more = f" and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
        Console().message(
            f"tiny_imagenet: {len(skipped)} images cannot be read and are left out: "
            f"{', '.join(skipped[:NAMED])}{more}"
        )
        images, labels = images[fine], labels[fine]
    return Split(images, labels)


def check_names(folder: Path, classes: list[str]) -> None:
    """Check the classes against wnids.txt, if it exists.

    Raises:
        KdbenchError: they differ.
    """
    path = folder / "wnids.txt"
    if path.is_file() and (odd := sorted(set(path.read_text().split()) ^ set(classes))):
        raise KdbenchError(
            f"{path} and {folder / 'train'} differ, in {odd[0]} first: copy them again"
        )


def scored_files(folder: Path, passed: PassedOver) -> Files:
    """List the images of val by class: from its annotations, or from class folders.

    Raises:
        KdbenchError: a class is empty, or annotations and images do not fit.
    """
    classes, _ = entries_of(folder, PassedOver())
    if "images" not in classes:
        return scan(folder, passed)
    left = image_files(folder, "images", passed)
    if left or classes == ["images"]:
        entries_of(folder, passed)
        return annotated_files(folder, left)
    return scan(folder, passed, without="images")


def annotated_files(folder: Path, images: list[tuple[str, int]]) -> Files:
    """List the images of an unsorted val by their classes in val_annotations.txt.

    Raises:
        KdbenchError: the annotations are missing, or do not name exactly the existing images.
    """
    path = folder / "val_annotations.txt"
    try:
        with open_regular(path) as file:
            lines = [line.split("\t") for line in file.read().decode().splitlines()]
        classes = {line[0]: line[1] for line in lines}  # then a box, which is not read
    except (OSError, ValueError, IndexError):
        raise KdbenchError(
            f"{folder / 'images'} is not sorted into classes, and {path} cannot be read: copy it "
            "again, or sort the images into val/WNID"
        ) from None
    there = dict(images)
    if odd := sorted({name.removeprefix("images/") for name in there} ^ set(classes)):
        raise KdbenchError(
            f"{path} and {folder / 'images'} differ, in {odd[0]} first: copy both again"
        )
    found: Files = {}
    for name, size in there.items():
        found.setdefault(classes[name.removeprefix("images/")], []).append((name, size))
    return found
