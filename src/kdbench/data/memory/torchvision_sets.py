"""CIFAR-10, CIFAR-100, Fashion-MNIST and STL-10 through torchvision's own classes."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

import torch
from torch.nn import functional as F
from torchvision.datasets import CIFAR10, CIFAR100, STL10, FashionMNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

from kdbench.data.base import Loaded, Split, assembled
from kdbench.data.layout import check_file
from kdbench.errors import KdbenchError
from kdbench.system.files import named_path

REPLACE = "remove it and add dataset.download=true, or copy it again"


@assembled
def cifar10(
    root: str,
    download: bool,
) -> Loaded:
    """CIFAR-10: 50,000 + 10,000 images [3, 32, 32] in 10 classes; see `_cifar` for errors."""
    return Loaded("cifar10", 10, *_cifar(CIFAR10, root, download))


@assembled
def cifar100(
    root: str,
    download: bool,
) -> Loaded:
    """CIFAR-100: 50,000 + 10,000 images [3, 32, 32] in 100 classes; see `_cifar` for errors."""
    return Loaded("cifar100", 100, *_cifar(CIFAR100, root, download))


@assembled
def fashion_mnist(
    root: str,
    download: bool,
) -> Loaded:
    """Fashion-MNIST: 60,000 + 10,000 grey images in 10 classes, as [3, 32, 32].

    The 28 x 28 pixels get a black border of 2 and three equal channels. Checksums exist for the
    downloaded archives only, which torchvision checks; of the unpacked files, the size that their
    own header states is checked.

    Raises:
        KdbenchError: a file is missing or truncated, or cannot be downloaded.
    """
    names = [Path(archive).stem for archive, _ in FashionMNIST.resources]
    base = _parent_of(root, "FashionMNIST", f"raw/{names[0]}")
    folder = base / "FashionMNIST" / "raw"
    if download and not all((folder / name).is_file() for name in names):
        archives = [Path(archive).name for archive, _ in FashionMNIST.resources]
        _check_files([folder / name for name in (*names, *archives)])
        try:
            FashionMNIST(base, download=True)
        except (RuntimeError, OSError, HTTPException) as error:
            raise _no_download("Fashion-MNIST", folder, error) from None
    splits = []
    for part in ("train", "t10k"):
        images_file = folder / f"{part}-images-idx3-ubyte"
        labels_file = folder / f"{part}-labels-idx1-ubyte"
        count, *size = _idx_shape("fashion_mnist", images_file, 3)
        if size != [28, 28] or _idx_shape("fashion_mnist", labels_file, 1) != [count]:
            raise KdbenchError(
                f"{images_file} and {labels_file.name} do not fit together: {REPLACE}"
            )
        images = F.pad(read_image_file(str(images_file)), (2, 2, 2, 2))
        images = images[:, None].repeat(1, 3, 1, 1)
        splits.append(Split(images, read_label_file(str(labels_file))))
    return Loaded("fashion_mnist", 10, *splits)


@assembled
def stl10(
    root: str,
    download: bool,
) -> Loaded:
    """STL-10: 5,000 + 8,000 labelled images [3, 96, 96] in 10 classes; see `_cifar` for errors.

    Its 100,000 unlabelled images are not read, but torchvision asks for their file too.
    """
    base = _parent_of(root, STL10.base_folder, STL10.train_list[0][0])
    names = [name for name, _ in (*STL10.train_list, *STL10.test_list)]
    folder = base / STL10.base_folder
    _check_files([base / STL10.filename, *(folder / name for name in names)])
    splits = []
    for part in ("train", "test"):
        try:
            data = STL10(base, split=part, download=download)
        except (RuntimeError, OSError, HTTPException) as error:
            if download:
                raise _no_download("STL10", folder, error) from None
            raise _what_is_wrong(STL10, folder, error) from None
        splits.append(Split(torch.from_numpy(data.data), torch.from_numpy(data.labels).long()))
    return Loaded("stl10", 10, *splits)


def _parent_of(root: str, folder: str, file: str) -> Path:
    """Return the parent of `folder`/`file` for torchvision: `root`, or a folder near it.

    A user may have named the folder itself, or a link to it or to its parent, and an archive may
    have been unpacked into a folder of its own name.
    """
    path = named_path(root).absolute()
    end = path.resolve()
    places = [path, *(one.parent for one in (path, end) if one.name == folder), path / folder]
    missing = end.parent if end.name == folder else end
    return next((one for one in places if os.path.isfile(one / folder / file)), missing)


def _check_files(paths: Sequence[Path]) -> None:
    """Refuse pipes, sockets and devices in the place of files, or of downloads."""
    for path in paths:
        if os.path.lexists(path):
            check_file(path)


def _cifar(source: type[CIFAR10], root: str, download: bool) -> tuple[Split, Split]:
    """Load training and test images; `root` holds torchvision's folder, or is it.

    torchvision compares every file with its checksum before it unpickles any.

    Raises:
        KdbenchError: a file is missing, truncated or altered, or cannot be downloaded.
    """
    base = _parent_of(root, source.base_folder, source.train_list[0][0])
    names = [name for name, _ in (*source.train_list, *source.test_list)]
    folder = base / source.base_folder
    _check_files([base / source.filename, *(folder / name for name in names)])
    splits = []
    for train in (True, False):
        try:
            with warnings.catch_warnings():
                # The official pickles spell a flag of NumPy's in a way that NumPy 2 deprecates.
                warnings.filterwarnings("ignore", r"dtype\(\): align should be passed", Warning)
                data = source(base, train=train, download=download)
        except (RuntimeError, OSError, HTTPException) as error:
            if download:
                raise _no_download(source.__name__, folder, error) from None
            raise _what_is_wrong(source, folder, error) from None
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        splits.append(Split(images, torch.tensor(data.targets)))
    return splits[0], splits[1]


def _what_is_wrong(
    source: type[CIFAR10] | type[STL10], folder: Path, error: Exception
) -> KdbenchError:
    """Tells a missing file from an altered one; torchvision has one error for both."""
    checksums = dict([*source.train_list, *source.test_list])
    if issubclass(source, CIFAR10):
        checksums[source.meta["filename"]] = source.meta["md5"]
    for name, expected in checksums.items():
        path = folder / name
        if not path.is_file():
            return _missing(source.__name__.lower(), path)
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest()
        except OSError as reason:
            return KdbenchError(f"cannot read {path}: {reason.strerror}")
        if found != expected:
            return KdbenchError(
                f"{path} is truncated or altered (md5 {found}, expected {expected}): {REPLACE}"
            )
    return KdbenchError(f"cannot read {folder}: {_one_line(error)}")


def _idx_shape(name: str, path: Path, dimensions: int) -> list[int]:
    """Read the shape in an idx file's header, after checking the file's size against it.

    The format: two zero bytes, the type (8 for uint8), the number of dimensions, then each as a
    big-endian uint32, then the values.
    """
    if not path.is_file():
        raise _missing(name, path)
    try:
        with path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            size = path.stat().st_size
    except OSError as reason:
        raise KdbenchError(f"cannot read {path}: {reason.strerror}") from None
    shape = [int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4)]
    expected = 4 + 4 * dimensions + torch.Size(shape).numel()
    if header[:4] != bytes((0, 0, 8, dimensions)) or size != expected:
        raise KdbenchError(
            f"{path} is truncated or altered ({size} bytes, its header says {expected}): {REPLACE}"
        )
    return shape


def _missing(name: str, path: Path) -> KdbenchError:
    return KdbenchError(
        f"{name} is not in {path.parent} (no file {path.name}): add dataset.download=true to the "
        "command, or set dataset.root=DIR or KDBENCH_DATA"
    )


def _no_download(name: str, folder: Path, error: Exception) -> KdbenchError:
    return KdbenchError(
        f"cannot download {name} ({_one_line(error)}): check the network, or copy its files to "
        f"{folder}"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
