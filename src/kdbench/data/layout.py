"""The places of a split's images: class folders, or files of a pattern."""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from kdbench.data.passed_over import PassedOver, left_behind, listed, printable
from kdbench.errors import KdbenchError
from kdbench.system.files import named_path

SHOWN = 3  # names in one line
MOST_CLASSES = 2**20  # a class number is below; ImageNet-21k has 21,841 classes

Files = dict[str, list[tuple[str, int]]]  # class -> names below the folder, sizes in bytes


def check_classes(folder: Path, train: Sequence[str], scored: Sequence[str], split: str) -> None:
    """Refuse class names of train that `split` lacks, and the reverse.

    Raises:
        KdbenchError: some differ; the first is named.
    """
    if odd := sorted(set(train) ^ set(scored)):
        more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
        raise KdbenchError(
            f"train and {split} in {folder} have different classes: "
            f"{', '.join(odd[:5])}{more} must be in both"
        )


def find_layout(name: str, root: str, inside: Sequence[str]) -> Path:
    """Find the folder with train/ and val/: `root`, or one of the names `inside` it.

    Raises:
        KdbenchError: there is none.
    """
    base = named_path(root).resolve()
    for folder in (base, *(base / part for part in inside)):
        if (folder / "train").is_dir() and (folder / "val").is_dir():
            return folder
    raise KdbenchError(
        f"{name} is not in {base} (no folders train and val, there or in {', '.join(inside)}): "
        "set dataset.root=DIR or KDBENCH_DATA"
    )


def scan(folder: Path, passed: PassedOver, without: str | None = None) -> Files:
    """List the image files in each class folder, recursively, as torchvision's ImageFolder does.

    Their order is ImageFolder's too: by folder name, then by file name. The folder `without`
    is no class.

    Raises:
        KdbenchError: there is no class folder, or an empty one; see also `image_files`.
    """
    names, loose = entries_of(folder, passed)
    classes = [name for name in names if name != without]
    if not classes:
        raise KdbenchError(
            f"{folder} has no class folders: sort its images into {folder.name}/CLASS/*.JPEG"
            f"{'; it holds ' + some(loose) if loose else ''}"
        )
    for name in loose:
        note = passed.outside if is_image(name) else passed.no_image
        note(f"{folder.name}/{name}")
    found = {name: image_files(folder, name, passed) for name in classes}
    for name, files in found.items():
        if not files:
            raise KdbenchError(f"{folder / name} has no images: add some or remove the folder")
    return found


def entries_of(folder: Path, passed: PassedOver) -> tuple[list[str], list[str]]:
    """Return the sorted names of folders and files in a folder, without hidden and system files.

    Raises:
        KdbenchError: it cannot be read.
    """
    folders: list[str] = []
    files: list[str] = []
    with reading(folder), os.scandir(folder) as entries:
        for entry in entries:
            if left_behind(entry.name):
                passed.left_behind(f"{folder.name}/{entry.name}")
            else:
                (folders if entry.is_dir() else files).append(entry.name)
    return sorted(folders), sorted(files)


def image_files(folder: Path, name: str, passed: PassedOver) -> list[tuple[str, int]]:
    """List the image files in a folder below `folder`, recursively, in ImageFolder's order.

    Raises:
        KdbenchError: one is no file, or a link to one that is not there; a folder cannot be read,
            or is a link to one that holds it.
    """
    found: list[tuple[str, str, int]] = []
    _collect(folder, name, (), found, passed)
    return [(f"{place}/{base}", size) for place, base, size in sorted(found)]


def _collect(
    folder: Path,
    name: str,
    above: tuple[tuple[int, int], ...],
    found: list[tuple[str, str, int]],
    passed: PassedOver,
) -> None:
    place = folder / name
    with reading(place):
        status = place.stat()
        here = status.st_dev, status.st_ino
        if here in above:
            raise KdbenchError(f"{place} is a link to a folder that holds it: remove the link")
        with os.scandir(place) as entries:
            for entry in entries:
                if left_behind(entry.name):
                    passed.left_behind(f"{folder.name}/{name}/{entry.name}")
                elif entry.is_dir():
                    _collect(folder, f"{name}/{entry.name}", (*above, here), found, passed)
                elif is_image(entry.name):
                    found.append((name, entry.name, size_of(entry.path, entry.stat())))
                else:
                    passed.no_image(f"{folder.name}/{name}/{entry.name}")


@contextmanager
def reading(place: Path) -> Iterator[None]:
    """Turn errors of reading a folder, or a file in it, into one line.

    Raises:
        KdbenchError: replaces an OSError.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise KdbenchError(f"{error.filename} is a link to nothing: mend or remove it") from None
    except OSError as error:
        raise KdbenchError(
            f"cannot read {error.filename or place} ({error.strerror}): let it be read, or mend it"
        ) from None


def check_file(path: Path) -> None:
    """Refuse a path that is no file, before it is opened.

    Raises:
        KdbenchError: it is a pipe, a socket or a device, or a link to nothing.
    """
    with reading(path.parent):
        if not path.is_dir():  # opening a folder fails anyway
            size_of(path, path.stat())


def is_image(name: str) -> bool:
    """Return whether a name has an image's ending, by torchvision's ImageFolder."""
    return name.lower().endswith(IMG_EXTENSIONS)


def size_of(path: Path | str, status: os.stat_result) -> int:
    """Return a file's size in bytes.

    Raises:
        KdbenchError: it is a pipe, a socket or a device, which may have no end.
    """
    if not stat.S_ISREG(status.st_mode):
        raise KdbenchError(f"{path} is a pipe, a socket or a device, and no file: remove it")
    return status.st_size


def some(names: Sequence[str]) -> str:
    """Return the number of names and the first ones, as text."""
    first = [printable(name) for name in names[:SHOWN]]
    return f"{len(names):,} file{'s' if len(names) > 1 else ''} ({listed(first, len(names))})"


def find_shards(folder: Path, pattern: str) -> dict[str, list[Path]]:
    """Find the files of each split in order; the pattern's group 1 is the split's name.

    Raises:
        KdbenchError: a name says "-of-00005" and there are not five, or one is no file.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = None if left_behind(path.name) else re.fullmatch(pattern, path.name)
        if match:
            check_file(path)
            name = match[1]
            found.setdefault("val" if name.startswith("val") else name, []).append(path)
    for name, paths in found.items():
        total = re.search(r"-of-(\d+)", paths[0].name)
        if total and len(paths) != int(total[1]):
            raise KdbenchError(
                f"{folder} has {len(paths)} files of {name}, their names say {int(total[1])}: "
                "fetch the missing, remove the surplus"
            )
    return found
