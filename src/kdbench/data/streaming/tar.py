"""Tar shards in WebDataset's layout: an image and its class under one key, KEY.jpg and KEY.cls.

The class may also be the number "label" in KEY.json. A key is a member's name up to the first dot
after its folders, as WebDataset reads it. The images stay where they are: an index of offsets is
all that random access needs, and Python's own tarfile reads one.
"""

import json
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from kdbench.errors import KdbenchError

CHUNK = 2**20  # bytes


class Index(NamedTuple):
    """The images of a shard, in its order."""

    names: list[str]  # without folders
    labels: np.ndarray  # [n] int64
    offsets: np.ndarray  # [n] int64, bytes from the start of the file
    sizes: np.ndarray  # [n] int64, bytes


def make_index(rows: list[tuple[str, int, int, int]]) -> Index:
    """From (name, label, offset, size) of each image."""
    numbers = np.array([row[1:] for row in rows], dtype=np.int64).reshape(-1, 3)
    return Index([row[0] for row in rows], *numbers.T)


def index_tar(path: Path) -> Index:
    """Read the headers and the labels of a tar file; images are passed over.

    Raises:
        KdbenchError: it is truncated, damaged or compressed, or an image has no class.
    """
    images: dict[str, tuple[str, int, int]] = {}  # key -> name, offset, size
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse():
                    _sort_in(path, tar, member, images, labels)
            _check_end(path, tar.offset)
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise KdbenchError(f"{path} is no readable tar file ({reason}): fetch it again") from None
    if not images:
        raise KdbenchError(f"{path} has no images: fetch it again or remove it")
    if missing := next((key for key in images if key not in labels), None):
        raise KdbenchError(
            f"{path}: {images[missing][0]} has no class: it needs {missing}.cls with a number, or "
            f'{missing}.json with one as "label"'
        )
    return make_index([(name, labels[key], at, size) for key, (name, at, size) in images.items()])


def _sort_in(
    path: Path,
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    images: dict[str, tuple[str, int, int]],
    labels: dict[str, int],
) -> None:
    folder, slash, base = member.name.rpartition("/")
    stem, _, ending = base.partition(".")
    key, ending = f"{folder}{slash}{stem}", ending.lower()
    if f".{ending}" in IMG_EXTENSIONS:
        if key in images:
            raise ValueError(f"two images of the name {key}")
        printable = base.encode("utf-8", "backslashreplace").decode()
        name = " ".join(printable.split())  # the index has a line for each
        images[key] = (name, member.offset_data, member.size)
    elif ending in ("cls", "json"):
        if member.size > CHUNK:
            raise ValueError(f"{member.name} is too large to hold a class")
        content = tar.extractfile(member)
        assert content is not None  # it is a regular file
        label = _label(content.read(), ending)
        if label is None and ending == "cls":
            raise ValueError(f"{member.name} holds no class number")
        if label is not None and labels.setdefault(key, label) != label:
            raise ValueError(f"{key} has two classes")


def _label(content: bytes, ending: str) -> int | None:
    """The class number of a .cls file, or of a .json file that tells one."""
    try:
        if ending == "cls":
            return int(content)
        label = json.loads(content)["label"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return label if type(label) is int else None


def _check_end(path: Path, offset: int) -> None:
    """Hold what follows the last member to be an end: tarfile takes a damaged header for one.

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
