"""ImageNet-1k, or any set in its layout, streamed from its files."""

import torch
from torch import Tensor

from kdbench.data.base import Split, hold_out
from kdbench.data.layout import check_classes, find_layout, scan
from kdbench.data.streamed import ImageFiles, ResizedCrops, StreamedDataset
from kdbench.errors import ConfigError

INSIDE = ("imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC")  # where a root may hold the set


def imagenet(
    root: str,
    image_size: int,
    test_resize: int,
    mean: list[float],
    std: list[float],
    flip: bool,
    val_split: int,
) -> StreamedDataset:
    """The files root/train/CLASS/* to train on and root/val/CLASS/* to score, never all in memory.

    A view is torchvision's RandomResizedCrop and flip; scored is the centre of the image whose
    shorter side is `test_resize`. Classes are numbered in the order of their folders' names, as
    torchvision's ImageFolder does, and with it its released weights.

    Raises:
        ConfigError: sizes that make no sense.
        KdbenchError: the folders are not there, val is not sorted into classes, or a class is empty
            or only on one side.
    """
    if not 1 <= image_size <= test_resize:
        raise ConfigError(
            f"dataset.image_size={image_size} must be from 1 to dataset.test_resize={test_resize}"
        )
    folder = find_layout("imagenet", root, INSIDE)
    found = {split: scan(folder / split) for split in ("train", "val")}
    classes = sorted(found["train"])
    check_classes(folder, classes, list(found["val"]), "val")
    files, splits = {}, {}
    for split, by_class in found.items():
        names, sizes = zip(*(file for name in classes for file in by_class[name]), strict=True)
        below = [f"{split}/{name}" for name in names]
        files[split] = ImageFiles(folder, below, sizes, test_resize, image_size)
        counts = torch.tensor([len(by_class[name]) for name in classes])
        labels = torch.arange(len(classes)).repeat_interleave(counts)
        splits[split] = Split(torch.arange(len(labels)), labels)  # rows stand for the images
    kept, held = hold_out(splits["train"], val_split, len(classes))
    return StreamedDataset(
        "imagenet",
        len(classes),
        train=_split(files["train"], kept),
        test=_split(files["val"], splits["val"]),
        val=None if held is None else _split(files["train"], held),
        mean=tuple(mean),
        std=tuple(std),
        views=ResizedCrops(flip),
    )


def _split(files: ImageFiles, rows: Split) -> Split:
    assert isinstance(rows.images, Tensor)
    return Split(files.select(rows.images.tolist()), rows.labels)
