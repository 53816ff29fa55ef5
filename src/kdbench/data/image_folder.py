"""Folders of images, one folder a class, read into memory at one size."""

from collections.abc import Mapping
from pathlib import Path

from torchvision.datasets import ImageFolder

from kdbench.data.base import Dataset, Split, assemble
from kdbench.data.decode import decode, refuse_too_large, stack
from kdbench.errors import ConfigError, KdbenchError


def image_folder(
    root: str | None,
    image_size: int,
    max_gib: float,
    mean: list[float],
    std: list[float],
    pad: int,
    flip: bool,
    val_split: int,
) -> Dataset:
    """root/train/CLASS/*.jpg and root/val/CLASS/*.jpg (or root/test), as uint8 [3, S, S].

    The shorter side becomes `image_size`, the middle square is kept; grey and CMYK images become
    RGB. The data set is called after its folder.

    Raises:
        ConfigError: no root is named.
        KdbenchError: a folder or a class is missing, an image is damaged, or the images would take
            more than `max_gib` GiB of memory.
    """
    if root is None:
        raise ConfigError("no folder of images is named: set dataset.root=DIR")
    base = Path(root)
    train = _list(base / "train")
    test = _list(base / ("val" if (base / "val").is_dir() else "test"))
    odd = sorted(set(train.classes) ^ set(test.classes))
    if odd:
        raise KdbenchError(
            f"training and test images in {base} have different classes: {', '.join(odd[:5])} "
            f"({len(odd)} in all) must be in both"
        )
    refuse_too_large(len(train.samples) + len(test.samples), image_size, max_gib)
    return assemble(
        base.resolve().name,
        len(train.classes),
        _read(train, train.class_to_idx, image_size),
        _read(test, train.class_to_idx, image_size),
        mean=mean,
        std=std,
        pad=pad,
        flip=flip,
        val_split=val_split,
    )


def _list(folder: Path) -> ImageFolder:
    """The images in a folder, by class.

    Raises:
        KdbenchError: there is no such folder, no class in it, or a class without images.
    """
    if not folder.is_dir():
        raise KdbenchError(
            f"no folder {folder.resolve()}: dataset.root=DIR needs DIR/train and DIR/val, each "
            "with one folder a class"
        )
    try:
        return ImageFolder(str(folder))
    except FileNotFoundError as error:
        reason = str(error).split(". ")[0].replace("\n", " ")
        raise KdbenchError(f"{reason} in {folder}: each class is a folder of images") from None


def _read(folder: ImageFolder, classes: Mapping[str, int], image_size: int) -> Split:
    images = [decode(Path(path).read_bytes(), path, image_size) for path, _ in folder.samples]
    labels = [classes[folder.classes[label]] for _, label in folder.samples]
    return Split(*stack(images, labels))
