"""ImageNet-1k, or any set in its layouts, streamed from its files."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kdbench.data.augmentation.crops import ResizedCrops
from kdbench.data.base import Split, fewer, hold_out
from kdbench.data.class_folders import list_folders
from kdbench.data.decoding.decode import check_scaled, squared
from kdbench.data.scored import check_scored
from kdbench.data.streaming.image_files import ImageFiles
from kdbench.data.streaming.placeholders import Placeholders
from kdbench.data.streaming.resized import resized_source
from kdbench.data.streaming.shards import has_shards_below, list_shards
from kdbench.data.streaming.sources import Listing, Source
from kdbench.data.streaming.streamed import Decoder, StreamedDataset, files_of
from kdbench.errors import ConfigError, KdbenchError
from kdbench.system.files import named_path

# Folders in a root that may hold the set; the last four are Kaggle's.
INSIDE = (
    *("imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC"),
    *("imagenet/ILSVRC/Data/CLS-LOC", "imagenet-object-localization-challenge/ILSVRC/Data/CLS-LOC"),
)


def imagenet(
    root: str,
    image_size: int,
    test_resize: int,
    mean: list[float],
    std: list[float],
    flip: bool,
    val_split: int,
    on_corrupt: Literal["error", "replace"] = "error",
    resized: int | None = None,
    decoder: Decoder = "pillow",
    cache_dir: str = "runs/.images",
    fraction: float = 1.0,
    long_tail: float = 1.0,
) -> StreamedDataset:
    """Make ImageNet from folders or shards; its images are never all in memory.

    A training view is torchvision's RandomResizedCrop and flip; a test image is scaled until its
    shorter side is `test_resize`, and its centre is cropped. Classes are numbered in the order of
    their folders' names, as in torchvision's ImageFolder and its released weights; shards bring
    their own numbers. A training image that cannot be read stops the run or is replaced
    (`Placeholders`); a test image that cannot be read always stops it, at the start
    (`check_scored`). With `resized`, training images come from a cache of pixels, scaled down to
    that shorter side (`resized_source`); with decoder="nvjpeg" or "dali" another library decodes
    them (`device_decode`, `dali`); with `fraction` and `long_tail` some are kept (`regimes`). None
    changes the test images.

    Raises:
        ConfigError: a setting is invalid, or pyarrow is missing for Parquet.
        KdbenchError: files are missing, val is not sorted into classes, a class is empty or
            only on one side, or a shard is damaged.
    """
    check_settings(image_size, test_resize, resized, decoder)
    cache, replace = Path(cache_dir).absolute(), on_corrupt == "replace"
    found = find(root, cache)
    train, test = found["train"], found["val"]
    num_classes = 1 + int(train.labels.max())
    rows = torch.arange(len(train.labels))  # in the place of images
    kept, held = hold_out(Split(rows, train.labels), val_split, num_classes)
    kept = fewer(kept, num_classes, fraction, long_tail)
    trained: Source = train.source
    if resized is not None:
        trained = resized_source(train.source, resized, cache, skip=replace)
    scored, sizes = Split(torch.arange(len(test.labels)), test.labels), (test_resize, image_size)
    return StreamedDataset(
        "imagenet",
        num_classes,
        train=split(trained, kept, *sizes, replace),
        test=to_score(test.source, scored, *sizes),
        val=None if held is None else to_score(train.source, held, *sizes),
        mean=tuple(mean),
        std=tuple(std),
        views=ResizedCrops(flip),
        decoder=decoder,
    )


def check_settings(
    image_size: int, test_resize: int, resized: int | None, decoder: Decoder
) -> None:
    """Refuse invalid settings.

    Raises:
        ConfigError: a setting is invalid; the message names it.
    """
    if not 1 <= image_size <= test_resize:
        raise ConfigError(
            f"dataset.image_size={image_size} must be from 1 to dataset.test_resize={test_resize}"
        )
    if resized is not None and resized < image_size:
        raise ConfigError(
            f"dataset.resized={resized} must be null or from dataset.image_size={image_size} up"
        )
    if resized is not None and decoder != "pillow":
        raise ConfigError(f"dataset.decoder={decoder} decodes nothing where dataset.resized is set")


def split(
    source: Source, part: Split, resize: int, image_size: int, replace: bool = False
) -> Split:
    """Make a split of the images at a part's rows."""
    assert isinstance(part.images, Tensor)
    source = source.select(part.images.tolist())
    placeholders = Placeholders(source, part.labels) if replace else None
    return Split(ImageFiles(source, resize, image_size, placeholders), part.labels)


def to_score(source: Source, part: Split, resize: int, image_size: int) -> Split:
    """Make a test split of the images at a part's rows, after checking that they can be read.

    Raises:
        KdbenchError: a file cannot be read.
    """
    found = split(source, part, resize, image_size)
    files = files_of(found)
    check_scored(
        files.source,
        lambda row: squared(files.read(row), resize, image_size),
        lambda _, width, height: check_scaled(width, height, resize),
    )
    return found


def find(root: str, cache_dir: Path) -> dict[str, Listing]:
    """Find train and val below a root: in folders train/ and val/, else shards there or in data/.

    Raises:
        KdbenchError: there is neither.
    """
    base = named_path(root).resolve()
    for folder in (base, *(base / part for part in INSIDE)):
        folders = (folder / "train").is_dir() and (folder / "val").is_dir()
        if folders and not has_shards_below(folder):
            return list_folders(folder, cache_dir)
        for place in (folder, folder / "data"):
            if shards := list_shards(place, cache_dir):
                return shards
    raise KdbenchError(
        f"imagenet is not in {base} (neither folders train and val nor tar or parquet shards of "
        f"both, there or in {', '.join(INSIDE)}): set dataset.root=DIR or KDBENCH_DATA"
    )
