"""ImageNet-1k, or any set in its layouts, streamed from its files."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kdbench.data.base import Split, hold_out
from kdbench.data.image_files import ImageFiles
from kdbench.data.layout import check_classes, scan
from kdbench.data.shards import list_shards
from kdbench.data.sources import FolderSource, Listing
from kdbench.data.stand_ins import StandIns
from kdbench.data.streamed import ResizedCrops, StreamedDataset
from kdbench.errors import ConfigError, KdbenchError

INSIDE = ("imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC")  # where a root may hold the set


def imagenet(
    root: str,
    image_size: int,
    test_resize: int,
    mean: list[float],
    std: list[float],
    flip: bool,
    val_split: int,
    on_corrupt: Literal["error", "replace"] = "error",
    cache_dir: str = "runs/.images",
) -> StreamedDataset:
    """Images to train on and to score, never all in memory; from folders or from shards.

    A view is torchvision's RandomResizedCrop and flip; scored is the centre of the image whose
    shorter side is `test_resize`. Classes are numbered in the order of their folders' names, as
    torchvision's ImageFolder does, and with it its released weights; shards bring their numbers.
    A training image that cannot be read stops the run, or another stands in for it (`StandIns`);
    one to score always stops it.

    Raises:
        ConfigError: sizes that make no sense; Parquet without pyarrow.
        KdbenchError: the files are not there, val is not sorted into classes, a class is empty or
            only on one side, or a shard is damaged.
    """
    if not 1 <= image_size <= test_resize:
        raise ConfigError(
            f"dataset.image_size={image_size} must be from 1 to dataset.test_resize={test_resize}"
        )
    found = find(root, Path(cache_dir).absolute())
    train, test = found["train"], found["val"]
    num_classes = 1 + int(train.labels.max())
    rows = torch.arange(len(train.labels))  # they stand for the images
    kept, held = hold_out(Split(rows, train.labels), val_split, num_classes)

    def split(listing: Listing, part: Split, replace: bool) -> Split:
        assert isinstance(part.images, Tensor)
        source = listing.source.select(part.images.tolist())
        stand_ins = StandIns(source, part.labels) if replace else None
        return Split(ImageFiles(source, test_resize, image_size, stand_ins), part.labels)

    scored = Split(torch.arange(len(test.labels)), test.labels)
    return StreamedDataset(
        "imagenet",
        num_classes,
        train=split(train, kept, on_corrupt == "replace"),
        test=split(test, scored, False),
        val=None if held is None else split(train, held, False),
        mean=tuple(mean),
        std=tuple(std),
        views=ResizedCrops(flip),
    )


def find(root: str, cache_dir: Path) -> dict[str, Listing]:
    """Train and val below a root: folders of classes, else shards, there or in data/.

    Raises:
        KdbenchError: there is neither.
    """
    base = Path(root).expanduser().resolve()
    for folder in (base, *(base / part for part in INSIDE)):
        if (folder / "train").is_dir() and (folder / "val").is_dir():
            return list_folders(folder)
        for place in (folder, folder / "data"):
            if shards := list_shards(place, cache_dir):
                return shards
    raise KdbenchError(
        f"imagenet is not in {base} (neither folders train and val nor tar or parquet shards of "
        f"both, there or in {', '.join(INSIDE)}): set dataset.root=DIR or KDBENCH_DATA"
    )


def list_folders(folder: Path) -> dict[str, Listing]:
    """The files train/CLASS/* and val/CLASS/*.

    Raises:
        KdbenchError: a class is empty or only on one side.
    """
    found = {split: scan(folder / split) for split in ("train", "val")}
    classes = sorted(found["train"])
    check_classes(folder, classes, list(found["val"]), "val")
    listings = {}
    for split, by_class in found.items():
        names, sizes = zip(*(file for name in classes for file in by_class[name]), strict=True)
        counts = torch.tensor([len(by_class[name]) for name in classes])
        labels = torch.arange(len(classes)).repeat_interleave(counts)
        source = FolderSource(folder, [f"{split}/{name}" for name in names], sizes)
        listings[split] = Listing(source, labels)
    return listings
