"""A folder of image files, one folder a class: torchvision's ImageFolder layout."""

from pathlib import Path

import torch
from torchvision.datasets import ImageFolder

from kdbench.data.base import Dataset, Split, assemble, folder_of, pick_test_split
from kdbench.data.decoding.decode import allocate, decode_into
from kdbench.data.layout import check_classes
from kdbench.errors import ConfigError, KdbenchError


def image_folder(
    root: str | None,
    test_split: str | None,
    image_size: int,
    max_gib: float,
    mean: list[float],
    std: list[float],
    pad: int,
    flip: bool,
    val_split: int,
) -> Dataset:
    """The images of `root`/train and `root`/`test_split` as uint8 [3, S, S], S = `image_size`.

    Each is made RGB, its shorter side scaled to S, and its centre kept. Classes are numbered in the
    order of their folders' names in train. The data set is called as the folder.

    Raises:
        ConfigError: `root` is not set or has no train or test folder; the images do not fit.
        KdbenchError: a class is empty or only on one side, or an image cannot be read.
    """
    folder = folder_of(root)
    if not (folder / "train").is_dir():
        raise ConfigError(
            f"no folder {folder / 'train'}: dataset.root=DIR needs DIR/train and DIR/val, each "
            "with one folder a class"
        )
    there = [name for name in ("val", "test") if (folder / name).is_dir()]
    scored = pick_test_split(folder, there, test_split)
    train, test = _scan(folder / "train"), _scan(folder / scored)
    check_classes(folder, train.classes, test.classes, scored)
    files = [Path(path) for path, _ in [*train.samples, *test.samples]]
    images = allocate(len(files), image_size, max_gib)
    decode_into(images, files, [str(file) for file in files])
    count = len(train.samples)
    splits = (
        Split(images[:count], torch.tensor(train.targets)),
        Split(images[count:], torch.tensor(test.targets)),
    )
    return assemble(
        folder.name,
        len(train.classes),
        *splits,
        mean=mean,
        std=std,
        pad=pad,
        flip=flip,
        val_split=val_split,
    )


def _scan(folder: Path) -> ImageFolder:
    """Files and classes of one split, in torchvision's order.

    Raises:
        KdbenchError: there is no class folder, or an empty one.
    """
    try:
        found = ImageFolder(folder, allow_empty=True)
    except OSError:
        raise KdbenchError(f"{folder} has no class folders: it must hold CLASS/*.jpg") from None
    filled = set(found.targets)
    for number, name in enumerate(found.classes):
        if number not in filled:
            raise KdbenchError(f"{folder / name} has no images: add some or remove the folder")
    return found
