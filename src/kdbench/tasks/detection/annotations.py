"""COCO's annotation files: one JSON object with images, annotations and categories.

Format: cocodataset.org, "Data format", object detection. A box is [x, y, width, height] in pixels
from the upper left corner.
"""

import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdbench.errors import KdbenchError, first_line

SHOWN = 3  # annotations in one line
MEND = "mend the file, or fetch it again"


class Picture(NamedTuple):
    """An image of the file."""

    id: int
    file: str  # below the folder of images
    height: int  # pixels, as is the width
    width: int


class Box(NamedTuple):
    """One annotation of the file."""

    id: int
    image: int  # the picture's id
    category: int  # the file's id of the category
    bbox: tuple[float, float, float, float]  # x, y, width, height in pixels
    area: float  # of the object, which may be less than the box's
    crowd: bool  # a region of many objects: never trained on; detections within it do not count


class Annotations(NamedTuple):
    """The checked content of a file."""

    path: Path
    categories: dict[int, str]  # the file's id -> name, by id; the i-th has label i, from 1
    pictures: list[Picture]
    boxes: list[Box]

    @property
    def labels(self) -> dict[int, int]:
        """The label, from 1, of each category's id; 0 is the background."""
        return {category: label for label, category in enumerate(self.categories, start=1)}


def read_annotations(path: Path) -> Annotations:
    """Read and check an annotation file.

    Raises:
        KdbenchError: the file is broken, or an entry cannot be trained on or scored; the message
            names the file and the entry.
    """
    content = _load(path)
    categories: dict[int, str] = {}
    for entry in content["categories"]:
        key, name = _whole(path, "category", entry, "id"), entry.get("name")
        if key in categories or not isinstance(name, str):
            raise KdbenchError(f"{path}: category {key} stands there twice or has no name: {MEND}")
        categories[key] = name
    if not categories:
        raise KdbenchError(f"{path} has no categories: {MEND}")
    categories = dict(sorted(categories.items()))
    pictures: dict[int, Picture] = {}
    for entry in content["images"]:
        picture = _picture(path, entry)
        if picture.id in pictures:
            raise KdbenchError(f"{path}: image {picture.id} stands there twice: {MEND}")
        pictures[picture.id] = picture
    boxes = [_box(path, entry, pictures, categories) for entry in content["annotations"]]
    if len({box.id for box in boxes}) < len(boxes):
        raise KdbenchError(f"{path}: two annotations have the same id: {MEND}")
    return Annotations(path, categories, list(pictures.values()), boxes)


def _load(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("not a regular file")
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise KdbenchError(
            f"no annotations {path}: set dataset.root to COCO's folder, or "
            "dataset.train_annotations and dataset.val_annotations"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise KdbenchError(f"{path} is no readable JSON ({first_line(error)}): {MEND}") from None
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise KdbenchError(f"{path} has no list of {key}: is it an instances_*.json of COCO's?")
    return content


def _whole(path: Path, kind: str, entry: Mapping[str, Any], key: str) -> int:
    value = entry.get(key)
    if type(value) is not int:
        raise KdbenchError(
            f"{path}: {kind} {entry.get('id')}: {key} must be a whole number, not {value!r}: {MEND}"
        )
    return value


def _picture(path: Path, entry: Mapping[str, Any]) -> Picture:
    key, height, width = (_whole(path, "image", entry, k) for k in ("id", "height", "width"))
    name = entry.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        raise KdbenchError(f"{path}: image {key} has no file_name: {MEND}")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise KdbenchError(f"{path}: image {key}: {name!r} is outside its folder: {MEND}")
    if min(height, width) < 1:
        raise KdbenchError(f"{path}: image {key} has the size {width} x {height}: {MEND}")
    return Picture(key, name, height, width)


def _box(
    path: Path,
    entry: Mapping[str, Any],
    pictures: Mapping[int, Picture],
    categories: Mapping[int, str],
) -> Box:
    keys = ("id", "image_id", "category_id")
    key, image, category = (_whole(path, "annotation", entry, name) for name in keys)

    def wrong(what: str) -> KdbenchError:
        return KdbenchError(f"{path}: annotation {key}: {what}: {MEND}")

    if image not in pictures:
        raise wrong(f"there is no image {image}")
    if category not in categories:
        raise wrong(f"there is no category {category}")
    bbox, picture = entry.get("bbox"), pictures[image]
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise wrong(f"bbox must be four numbers, not {bbox!r}")
    x, y, width, height = map(float, bbox)
    if width < 0 or height < 0:
        raise wrong(f"bbox {bbox} has a negative size")
    if x > picture.width or y > picture.height or x + width < 0 or y + height < 0:
        size = f"{picture.width} x {picture.height}"
        raise wrong(f"bbox {bbox} lies outside its image of {size} ({picture.file})")
    area, crowd = entry.get("area", width * height), entry.get("iscrowd", 0)
    if not _is_number(area):
        raise wrong(f"area must be a number, not {area!r}")
    if crowd not in (0, 1):
        raise wrong(f"iscrowd must be 0 or 1, not {crowd!r}")
    return Box(key, image, category, (x, y, width, height), float(area), bool(crowd))


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e9 and math.isfinite(value)


class Target(NamedTuple):
    """The training target of an image."""

    boxes: Tensor  # [n, 4] float32: x1, y1, x2, y2 in pixels, within the image
    labels: Tensor  # [n] int64, from 1


def targets(annotations: Annotations) -> tuple[dict[int, Target], list[Box]]:
    """Return the targets of each image that has any, by id, and the boxes without an area.

    Crowds are left out. Boxes that reach beyond their image are clipped to it, and those without an
    area afterwards are left out: COCO's own files hold both kinds. Images without a box are left
    out too.
    Source: torchvision's reference code, references/detection/coco_utils.py.
    """
    sizes = {picture.id: (picture.width, picture.height) for picture in annotations.pictures}
    labels = annotations.labels
    found: dict[int, list[tuple[list[float], int]]] = {}
    flat = []
    for box in annotations.boxes:
        if box.crowd:
            continue
        x, y, width, height = box.bbox
        right, bottom = sizes[box.image]
        corners = [max(x, 0.0), max(y, 0.0), min(x + width, right), min(y + height, bottom)]
        x1, y1, x2, y2 = torch.tensor(corners).tolist()  # rounded to float32
        if x2 <= x1 or y2 <= y1:
            flat.append(box)
            continue
        found.setdefault(box.image, []).append((corners, labels[box.category]))
    made = {
        image: Target(
            torch.tensor([corners for corners, _ in rows], dtype=torch.float32),
            torch.tensor([label for _, label in rows], dtype=torch.int64),
        )
        for image, rows in found.items()
    }
    return made, flat


def said_of(flat: list[Box], annotations: Annotations) -> str:
    """Return one line on the boxes without an area."""
    names = ", ".join(str(box.id) for box in flat[:SHOWN]) + (", ..." if len(flat) > SHOWN else "")
    return f"{annotations.path}: {len(flat)} boxes without an area are not trained on ({names})"
