"""Where the images of a split are: in folders, one a class, or in the files of a pattern."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from kdbench.errors import KdbenchError

Files = dict[str, list[tuple[str, int]]]  # class -> names below the folder, sizes in bytes


def check_classes(folder: Path, train: Sequence[str], scored: Sequence[str], split: str) -> None:
    """Refuse class names of train that `split` has not, or the other way round.

    Raises:
        KdbenchError: names the first of them.
    """
    if odd := sorted(set(train) ^ set(scored)):
        more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
        raise KdbenchError(
            f"train and {split} in {folder} have different classes: "
            f"{', '.join(odd[:5])}{more} must be in both"
        )


def find_layout(name: str, root: str, inside: Sequence[str]) -> Path:
    """The folder with train/ and val/: `root`, or one of the names `inside` it.

    Raises:
        KdbenchError: there is none.
    """
    base = Path(root).expanduser().resolve()
    for folder in (base, *(base / part for part in inside)):
        if (folder / "train").is_dir() and (folder / "val").is_dir():
            return folder
    raise KdbenchError(
        f"{name} is not in {base} (no folders train and val, there or in {', '.join(inside)}): "
        "set dataset.root=DIR or KDBENCH_DATA"
    )


def scan(folder: Path) -> Files:
    """The image files of each class folder, in order of their names.

    A class may have its images in a folder `images` of its own, as Tiny-ImageNet's have.

    Raises:
        KdbenchError: there is no class folder, or an empty one.
    """
    with os.scandir(folder) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir())
    if not classes:
        raise KdbenchError(
            f"{folder} has no class folders: sort its images into {folder.name}/CLASS/*.JPEG"
        )
    found = {}
    for name in classes:
        found[name] = image_files(folder, name) or image_files(folder, f"{name}/images")
        if not found[name]:
            raise KdbenchError(f"{folder / name} has no images: add some or remove the folder")
    return found


def image_files(folder: Path, name: str) -> list[tuple[str, int]]:
    """The image files in a folder below `folder`; none where it is not there.

    Raises:
        KdbenchError: one is a link to a file that is not there.
    """
    if not (folder / name).is_dir():
        return []
    try:
        with os.scandir(folder / name) as entries:
            return sorted(
                (f"{name}/{entry.name}", entry.stat().st_size)
                for entry in entries
                if entry.name.lower().endswith(IMG_EXTENSIONS)
            )
    except FileNotFoundError as error:
        raise KdbenchError(f"{error.filename} is a link to nothing: mend or remove it") from None


def find_shards(folder: Path, pattern: str) -> dict[str, list[Path]]:
    """The files of each split in order; in the pattern, group 1 is the split's name.

    Raises:
        KdbenchError: a name says "-of-00005" and there are not five.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := re.fullmatch(pattern, path.name):
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
