"""Tar shards in WebDataset's layout: an image and its class under one key, KEY.jpg and KEY.cls.

A tar may also hold the images of one class alone, as in ILSVRC2012's archive.

The class may also be the number "label" in KEY.json. A key is a member's name up to the first dot
after its folders, as in WebDataset. The images stay in the tar: an index of offsets is
enough for random access, and Python's own tarfile can make one.
"""

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from kdbench.data.layout import MOST_CLASSES, is_image
from kdbench.data.passed_over import PassedOver, left_behind, printable
from kdbench.errors import KdbenchError
from kdbench.system.files import open_regular

CHUNK = 2**20  # bytes
LABELS = (".cls", ".json")


class Index(NamedTuple):
    """The images of a shard, in its order."""

    names: list[str]  # without folders
    labels: np.ndarray  # [n] int64
    offsets: np.ndarray  # [n] int64, bytes from the start of the file
    sizes: np.ndarray  # [n] int64, bytes

    def fits(self, total: int) -> bool:
        """Return whether all images lie within `total` bytes; an index need not be ours."""
        columns = self.labels, self.offsets, self.sizes
        if any(one.dtype != np.int64 or one.shape != (len(self.names),) for one in columns):
            return False
        if not self.names or min(self.offsets.min(), self.sizes.min()) < 0:
            return False
        inside = (self.sizes <= total) & (self.offsets <= total - self.sizes)
        return bool(inside.all() and (np.abs(self.labels.astype(float)) < MOST_CLASSES).all())


def make_index(rows: list[tuple[str, int, int, int]]) -> Index:
    """Make an index from (name, label, offset, size) of each image."""
    numbers = np.array([row[1:] for row in rows], dtype=np.int64).reshape(-1, 3)
    return Index([row[0] for row in rows], *numbers.T)


def index_tar(path: Path, passed: PassedOver | None = None) -> Index:
    """Read the headers and the labels of a tar file, but not its images.

    Raises:
        KdbenchError: it is truncated, damaged or compressed, or an image has no class.
    """
    content = read_members(path, passed or PassedOver(), True)
    labels = content.labels
    if missing := next((key for key in content.images if key not in labels), None):
        raise KdbenchError(
            f"{path}: {content.images[missing][0]} has no class: it needs {missing}.cls with a "
            f'number, or {missing}.json with one as "label"'
        )
    return make_index([(name, labels[key], at, n) for key, (name, at, n) in content.images.items()])


def index_class(path: Path, passed: PassedOver) -> Index:
    """Read the headers of a tar file that holds the images of one class, which are all numbered 0.

    Raises:
        KdbenchError: it is truncated, damaged or compressed.
    """
    content = read_members(path, passed, False)
    for name in content.others:
        passed.no_image(f"{path.name}/{name}")
    return make_index([(name, 0, at, size) for name, at, size in content.images.values()])


def has_labels(path: Path) -> bool:
    """Return whether a tar file holds classes beside its images.

    Raises:
        KdbenchError: it is damaged or compressed.
    """
    with readable(path), opened(path) as tar:
        return any(member.name.lower().endswith(LABELS) for member in tar)


class Members(NamedTuple):
    """The members of a tar file."""

    images: dict[str, tuple[str, int, int]]  # key -> name, offset, size
    labels: dict[str, int]  # by key
    others: list[str]  # names of other files


def read_members(path: Path, passed: PassedOver, labelled: bool) -> Members:
    """List the images of a tar file, and their classes if `labelled`.

    Raises:
        KdbenchError: it is truncated, damaged or compressed, or has no images.
    """
    content = Members({}, {}, [])
    with readable(path):
        with opened(path) as tar:
            for member in tar:
                parts = [part for part in member.name.split("/") if part not in (".", "..")]
                if any(map(left_behind, parts)):
                    if member.isreg():
                        passed.left_behind(f"{path.name}/{member.name}")
                elif member.isreg() and not member.issparse():
                    _sort_in(tar, member, content, labelled)
            end = tar.offset
        _check_end(path, end)
    if not content.images:
        raise KdbenchError(f"{path} has no images{_instead(content.others)}")
    return content


def _instead(others: list[str]) -> str:
    """Describe a file without images, as the end of an error line."""
    if tars := [name for name in others if name.lower().endswith(".tar")]:
        return (
            f", but {len(tars)} tar files ({printable(tars[0])} ...): unpack it, and leave those "
            "as they are, in a folder train or val"
        )
    return ": fetch it again or remove it"


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn any error with a tar file into one line.

    Raises:
        KdbenchError: it is truncated, damaged or compressed.
    """
    try:
        yield
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        reason = printable(" ".join(str(error).split()))
        raise KdbenchError(f"{path} is no readable tar file ({reason}): fetch it again") from None


@contextmanager
def opened(path: Path) -> Iterator[tarfile.TarFile]:
    """Open an uncompressed tar file."""
    with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        yield tar


def _sort_in(
    tar: tarfile.TarFile, member: tarfile.TarInfo, content: Members, labelled: bool
) -> None:
    folder, slash, base = member.name.rpartition("/")
    stem, _, ending = base.partition(".")
    key, ending = f"{folder}{slash}{stem}", ending.lower()
    if f".{ending}" in IMG_EXTENSIONS if labelled else is_image(base):
        key = key if labelled else member.name
        if key in content.images:
            raise ValueError(f"two images of the name {key}")
        name = " ".join(printable(base).split())  # the index has a line for each
        content.images[key] = (name, member.offset_data, member.size)
    elif labelled and f".{ending}" in LABELS:
        if member.size > CHUNK:
            raise ValueError(f"{member.name} is too large to hold a class")
        file = tar.extractfile(member)
        assert file is not None  # it is a regular file
        label = _label(file.read(), ending)
        if label is None and ending == "cls":
            raise ValueError(f"{member.name} holds no class number")
        if label is not None and not abs(label) < MOST_CLASSES:
            raise ValueError(f"{member.name}: there is no class of the number {str(label)[:20]}")
        if label is not None and content.labels.setdefault(key, label) != label:
            raise ValueError(f"{key} has two classes")
    else:
        content.others.append(member.name)


def _label(content: bytes, ending: str) -> int | None:
    """Return the class number of a .cls file, or of a .json file that has one."""
    try:
        if ending == "cls":
            return int(content)
        label = json.loads(content)["label"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return label if type(label) is int else None


def _check_end(path: Path, offset: int) -> None:
    """Check that an end follows the last member: tarfile takes a damaged header for one.

    Raises:
        ValueError: something else follows, or nothing.
    """
    with path.open("rb") as file:
        file.seek(offset)
        if len(file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
            raise ValueError("it ends without an end mark")
        file.seek(offset)
        while chunk := file.read(CHUNK):
            if chunk.strip(b"\0"):
                raise ValueError(f"its header at byte {offset} is damaged")
