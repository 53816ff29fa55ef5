"""COCO's average precision, by pycocotools."""

import io
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.system.precision import arithmetic
from kdbench.tasks.detection.annotations import Annotations
from kdbench.tasks.detection.batches import test_images
from kdbench.tasks.detection.coco import DetectionData
from kdbench.tasks.detection.networks import Detector


class Scores(NamedTuple):
    """Average precisions in percent; None where no object has that size."""

    ap: float | None  # mean over IoU 0.50, 0.55 ... 0.95
    ap50: float | None  # at IoU 0.50
    ap75: float | None
    ap_small: float | None  # objects below 32^2 pixels
    ap_medium: float | None
    ap_large: float | None  # above 96^2


class Found(NamedTuple):
    """A detector's detections on one image."""

    image: int  # the picture's id
    boxes: Tensor  # [n, 4] float: x1, y1, x2, y2 in the file's pixels
    labels: Tensor  # [n] int64, from 1
    scores: Tensor  # [n] float


def need_pycocotools() -> None:
    """Check that pycocotools is installed, before any slow work.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec("pycocotools") is None:
        raise ConfigError("task=detection needs pycocotools: pip install 'kdbench[detection]'")


@torch.no_grad()
def evaluate(
    network: Detector,
    data: DetectionData,
    device: torch.device,
    memory_format: torch.memory_format,
    precision: str = "fp32",
) -> Scores:
    """Score a network on the test images; its mode is restored afterwards.

    `precision` is that of the forward passes (`kdbench.system.precision.arithmetic`).

    Raises:
        KdbenchError: an image cannot be read.
    """
    training = network.training
    network.eval()
    found = []
    for picture, images in test_images(data, device):
        images.tensors = images.tensors.contiguous(memory_format=memory_format)
        with arithmetic(precision):
            (detected,) = network.detect(images)
        height, width = images.image_sizes[0]
        across, down = picture.width / width, picture.height / height
        boxes = detected["boxes"].cpu() * torch.tensor([across, down, across, down])
        labels, scores = detected["labels"].cpu(), detected["scores"].cpu()
        found.append(Found(picture.id, boxes, labels, scores))
    network.train(training)
    return average_precision(data.test, found)


def average_precision(truth: Annotations, found: Sequence[Found]) -> Scores:
    """Compute COCO's scores from the detections on all images of an annotation file."""
    from pycocotools.cocoeval import COCOeval

    categories = list(truth.categories)
    objects = [
        {"image_id": box.image, "category_id": box.category, "bbox": list(box.bbox)}
        | {"area": box.area, "iscrowd": int(box.crowd)}
        for box in truth.boxes
    ]
    detections = []
    for one in found:
        rows = one.boxes.tolist(), one.labels.tolist(), one.scores.tolist()
        for (x1, y1, x2, y2), label, score in zip(*rows, strict=True):
            bbox = [x1, y1, x2 - x1, y2 - y1]
            named = {"image_id": one.image, "category_id": categories[label - 1], "bbox": bbox}
            detections.append({**named, "area": bbox[2] * bbox[3], "iscrowd": 0, "score": score})
    with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        judge = COCOeval(_index(truth, objects), _index(truth, detections), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    values = [float(value) for value in judge.stats[: len(Scores._fields)]]
    return Scores(*(None if value < 0 else 100 * value for value in values))


def _index(truth: Annotations, annotations: Iterable[dict[str, Any]]) -> Any:
    """Index annotations for pycocotools, numbered from 1."""
    from pycocotools.coco import COCO

    index = COCO()
    index.dataset = {
        "images": [{"id": picture.id} for picture in truth.pictures],
        "categories": [{"id": key, "name": name} for key, name in truth.categories.items()],
        "annotations": [{**one, "id": number} for number, one in enumerate(annotations, start=1)],
    }
    index.createIndex()
    return index
