"""Sets in shards: files of thousands of images, tar or Parquet, read in any order.

An index of every shard (names, classes, offsets, sizes) is made once and kept in the cache folder;
it is valid as long as the shard has the same name, size and modification time.
"""

import fcntl
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from kdbench.data.arrays import read_arrays
from kdbench.data.decoding.decode import Depth
from kdbench.data.layout import check_classes, check_file, find_shards
from kdbench.data.passed_over import PassedOver, left_behind
from kdbench.data.streaming.packs import pack
from kdbench.data.streaming.sources import Listing, ShardSource
from kdbench.data.streaming.tar import Index, has_labels, index_class, index_tar
from kdbench.errors import KdbenchError, writing
from kdbench.system.console import Console
from kdbench.system.disk import check_room
from kdbench.system.files import write_atomically

NAME = r"(?:.*[-_])?(train|val|valid|validation)([-_.]?\d.*)?"  # also imagenet1k-train-0000.tar
KINDS = ("tar", "parquet")
FORMAT = 1  # of an index
OTHER_FOLDER = "name another folder with dataset.cache_dir=DIR"  # if the disk is too small
# In the Hub's imagenet-1k, n01440764_10026.JPEG is called n01440764_10026_n01440764.JPEG.
HUB_NAME = re.compile(r"_n\d{8}(?=\.JPEG$)")


def list_shards(folder: Path, cache_dir: Path) -> dict[str, Listing] | None:
    """List train and val from the shards in a folder; None where either has none.

    Rows are in ImageFolder's order: by class, then by file name.

    Raises:
        ConfigError: pyarrow is missing, or a Parquet shard lacks a column.
        KdbenchError: a shard is empty, damaged or missing, or a class is only on one side.
    """
    found = {
        kind: find_shards(folder, rf"{NAME}\.{kind}") or shards_below(folder, kind)
        for kind in KINDS
    }
    found = {kind: shards for kind, shards in found.items() if {"train", "val"} <= shards.keys()}
    if not found:
        return None
    if len(found) > 1:
        raise KdbenchError(f"{folder} has both tar and parquet shards: move one kind elsewhere")
    ((kind, shards),) = found.items()
    with writing(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
    listings, passed, depth = {}, PassedOver(), Depth()
    for split in ("train", "val"):
        with held(cache_dir):
            indexes = index_all(shards[split], kind, cache_dir, passed)
        files = [pack_path(p, cache_dir) if kind == "parquet" else p for p in shards[split]]
        listings[split] = join(split, files, indexes, depth)
    classes = {split: map(str, one.labels.unique().tolist()) for split, one in listings.items()}
    check_classes(folder, list(classes["train"]), list(classes["val"]), "val")
    passed.say(folder)
    return listings


def shards_below(folder: Path, kind: str) -> dict[str, list[Path]]:
    """Find the shards in the folders train and val, under any names.

    Raises:
        KdbenchError: a shard is no file.
    """
    found = {split: files_called(folder / split, f"*.{kind}") for split in ("train", "val")}
    return {split: paths for split, paths in found.items() if paths}


def files_called(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a pattern, sorted, without hidden and system files.

    Raises:
        KdbenchError: a shard is no file.
    """
    paths = sorted(path for path in folder.glob(pattern) if not left_behind(path.name))
    for path in paths:
        check_file(path)
    return paths


def has_shards_below(folder: Path) -> bool:
    """Return whether train/ and val/ hold shards of both splits, rather than a tar per class."""
    below = [shards_below(folder, kind) for kind in KINDS]
    return any({"train", "val"} <= one.keys() for one in below) and not any(
        class_tars(folder / split) for split in ("train", "val")
    )


def class_tars(folder: Path) -> list[Path]:
    """Return the tar files of a folder, if each holds one class and has its name.

    Such files hold images alone. Shards hold labels too, and are named by numbers or by their
    split; if all have such names, they are shards.

    Raises:
        KdbenchError: a file cannot be read.
    """
    tars = files_called(folder, "*.tar")
    numbered = all(re.fullmatch(NAME, tar.stem) or tar.stem.isdecimal() for tar in tars)
    return [] if numbered or has_labels(tars[0]) else tars


def list_class_tars(
    split: str, tars: Sequence[Path], cache_dir: Path, passed: PassedOver, depth: Depth
) -> Listing:
    """List tar files that hold a class each, with the order and names of class folders.

    Raises:
        KdbenchError: a file is empty or damaged.
    """
    with writing(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
    with held(cache_dir):
        indexes = index_all(tars, "class", cache_dir, passed)
    numbered = [
        index._replace(labels=np.full(len(index.names), number))
        for number, index in enumerate(indexes)
    ]
    return join(split, tars, numbered, depth, [tar.stem for tar in tars])


def join(
    split: str,
    files: Sequence[Path],
    indexes: Sequence[Index],
    depth: Depth | None = None,
    classes: Sequence[str] | None = None,  # None: only numbers are known
) -> Listing:
    """Join the listings of all shards of a split."""
    labels = np.concatenate([index.labels for index in indexes])
    names = [name for index in indexes for name in index.names]
    if classes is None:
        names = [HUB_NAME.sub("", name) for name in names]
    order = sorted(range(len(names)), key=lambda row: (labels[row], names[row]))
    folders = labels if classes is None else np.array(classes, dtype=object)[labels]
    file = np.repeat(np.arange(len(files)), [len(index.names) for index in indexes])
    source = ShardSource(
        files,
        [f"{split}/{folders[row]}/{names[row]}" for row in order],
        np.concatenate([index.sizes for index in indexes])[order].tolist(),
        file[order],
        np.concatenate([index.offsets for index in indexes])[order],
        depth or Depth(),
    )
    return Listing(source, torch.from_numpy(labels[order]))


def index_all(
    shards: Sequence[Path], kind: str, cache_dir: Path, passed: PassedOver
) -> list[Index]:
    """Return the index of each shard, from the cache or made now."""
    kept = [read_index(shard, kind, cache_dir) for shard in shards]
    missing = [shard for shard, index in zip(shards, kept, strict=True) if index is None]
    if missing and kind == "parquet":
        size = sum(shard.stat().st_size for shard in missing)
        check_room(cache_dir, size, "a copy of the images", OTHER_FOLDER)
        Console().message(
            f"copying the images of {len(missing)} Parquet files ({size / 2**30:.3g} GiB) to "
            f"{cache_dir}, once: Parquet cannot be read in random order"
        )
    build: dict[str, Callable[[Path], Index]] = {
        "tar": lambda shard: index_tar(shard, passed),
        "class": lambda shard: index_class(shard, passed),
        "parquet": lambda shard: pack(shard, pack_path(shard, cache_dir), passed),
    }
    indexes = []
    for shard, index in zip(shards, kept, strict=True):
        if index is None:
            facts = facts_of(shard, kind)  # read first, so that a later change invalidates it
            index = build[kind](shard)
            write_index(index, facts, index_path(shard, cache_dir))
        indexes.append(index)
    return indexes


def index_path(shard: Path, cache_dir: Path) -> Path:
    """Return the path of a shard's index, which also depends on the shard's folder."""
    return cache_dir / f"{shard.name}.{sha256(str(shard.parent).encode()).hexdigest()[:12]}.npz"


def pack_path(shard: Path, cache_dir: Path) -> Path:
    """Return the path of the copied images of a Parquet shard."""
    return index_path(shard, cache_dir).with_suffix(".pack")


def facts_of(shard: Path, kind: str = "tar") -> str:
    """Return the facts of a shard that its index depends on."""
    status = shard.stat()
    facts = [FORMAT, shard.name, status.st_size, status.st_mtime_ns]
    return json.dumps([*facts, kind] if kind == "class" else facts)  # without class numbers


def read_index(shard: Path, kind: str, cache_dir: Path) -> Index | None:
    """Read a shard's index; None where there is no valid one."""
    path = index_path(shard, cache_dir)
    holder = pack_path(shard, cache_dir) if kind == "parquet" else shard
    try:
        kept = read_arrays(path, ("facts", "names", "labels", "offsets", "sizes"))
        facts, names = (kept[key].tobytes().decode() for key in ("facts", "names"))
        index = Index(names.split("\n"), kept["labels"], kept["offsets"], kept["sizes"])
        total = holder.stat().st_size
        if facts != facts_of(shard, kind) or not index.fits(total):
            return None
        whole = kind != "parquet" or total == index.sizes.sum()
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, BadZipFile):
        return None
    return index if whole else None


def write_index(index: Index, facts: str, path: Path) -> None:
    """Keep an index.

    Raises:
        WriteError: it cannot be written.
    """
    facts_and_names = (facts, "\n".join(index.names))
    texts = [np.frombuffer(text.encode(), dtype=np.uint8) for text in facts_and_names]
    content = io.BytesIO()
    np.savez(
        content,
        facts=texts[0],
        names=texts[1],
        labels=index.labels,
        offsets=index.offsets,
        sizes=index.sizes,
    )
    with writing(path):
        write_atomically(path, content.getvalue())


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock the folder, so that processes that start together do not copy the same shards."""
    path = folder / ".lock"
    if os.path.lexists(path):
        check_file(path)
    with writing(folder):  # follows no link to a foreign file
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.fdopen(os.open(path, flags, 0o666), "rb+")
    with file:
        with suppress(OSError):  # some file systems cannot lock; copies are whole anyway
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
