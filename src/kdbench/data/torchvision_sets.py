"""CIFAR-10, CIFAR-100 and Fashion-MNIST through torchvision's own classes."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from kdbench.data.base import Dataset, Split, assemble
from kdbench.errors import KdbenchError


def cifar10(
    root: str,
    download: bool,
    mean: list[float],
    std: list[float],
    pad: int,
    flip: bool,
    val_split: int,
) -> Dataset:
    """CIFAR-10: 50,000 + 10,000 images [3, 32, 32] in 10 classes; see `_cifar` for errors."""
    train, test = _cifar(CIFAR10, root, download)
    return assemble(
        "cifar10", 10, train, test, mean=mean, std=std, pad=pad, flip=flip, val_split=val_split
    )


def cifar100(
    root: str,
    download: bool,
    mean: list[float],
    std: list[float],
    pad: int,
    flip: bool,
    val_split: int,
) -> Dataset:
    """CIFAR-100: 50,000 + 10,000 images [3, 32, 32] in 100 classes; see `_cifar` for errors."""
    train, test = _cifar(CIFAR100, root, download)
    return assemble(
        "cifar100", 100, train, test, mean=mean, std=std, pad=pad, flip=flip, val_split=val_split
    )


def fashion_mnist(
    root: str,
    download: bool,
    mean: list[float],
    std: list[float],
    pad: int,
    flip: bool,
    val_split: int,
) -> Dataset:
    """Fashion-MNIST: 60,000 + 10,000 grey images in 10 classes, as [3, 32, 32].

    The 28 x 28 pixels get a black border of 2 and three equal channels.

    Raises:
        KdbenchError: a file is missing, truncated or altered.
    """
    if not download:
        _refuse_missing("fashion_mnist", Path(root) / "FashionMNIST" / "raw", _fashion_files())
    splits = []
    for train in (True, False):
        try:
            source = FashionMNIST(root, train=train, download=download)
        except (RuntimeError, ValueError, OSError) as error:
            raise _damaged(Path(root) / "FashionMNIST" / "raw", error) from None
        images = F.pad(source.data, (2, 2, 2, 2))[:, None].expand(-1, 3, -1, -1)
        splits.append(Split(images.contiguous(), source.targets.long()))
    return assemble(
        "fashion_mnist", 10, *splits, mean=mean, std=std, pad=pad, flip=flip, val_split=val_split
    )


def _fashion_files() -> list[str]:
    return [Path(url).stem for url, _ in FashionMNIST.resources]


def _cifar(source: type[CIFAR10], root: str, download: bool) -> tuple[Split, Split]:
    """Training and test images; `root` holds torchvision's folder, or is it.

    Raises:
        KdbenchError: a file is missing, truncated or altered. The checksum is checked before a
            file is unpickled.
    """
    base = Path(root)
    if base.name == source.base_folder:
        base = base.parent
    folder = base / source.base_folder
    checksums = dict([*source.train_list, *source.test_list])
    checksums[source.meta["filename"]] = source.meta["md5"]
    if not download:
        _refuse_missing(source.__name__.lower(), folder, list(checksums))
        for name, expected in checksums.items():
            found = _md5(folder / name)
            if found != expected:
                raise KdbenchError(
                    f"{folder / name} is truncated or altered (md5 {found}, expected {expected}): "
                    "remove it and add dataset.download=true"
                )
    splits = []
    for train in (True, False):
        with warnings.catch_warnings():
            # The official pickles spell a NumPy flag in a way that NumPy 2 deprecates.
            warnings.filterwarnings("ignore", message="dtype", category=Warning)
            data = source(str(base), train=train, download=download)
        images = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
        splits.append(Split(images, torch.tensor(data.targets)))
    return splits[0], splits[1]


def _refuse_missing(name: str, folder: Path, files: list[str]) -> None:
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise KdbenchError(
            f"{name} is not in {folder.resolve()} (no file {missing[0]}): add "
            "dataset.download=true, or name its folder with dataset.root=DIR or KDBENCH_DATA"
        )


def _damaged(folder: Path, error: Exception) -> KdbenchError:
    reason = " ".join(str(error).split())
    return KdbenchError(
        f"the files in {folder} are truncated or altered ({reason}): remove them and add "
        "dataset.download=true"
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
