"""COCO's average precision, by pycocotools."""

import io
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.system.precision import Precision, arithmetic, mixed
from kdbench.system.runtime import Runtime
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
    network: Detector, data: DetectionData, runtime: Runtime, precision: Precision = "fp32"
) -> Scores:
    """Score a network on the test images; its mode is restored afterwards.

    The ranks take images in turn, and each returns the scores that a single process would find.
    `precision` is that of the forward passes (`kdbench.system.precision`).

    Raises:
        KdbenchError: an image cannot be read.
    """
    training, ranks, pictures = network.training, runtime.ranks, data.test.pictures
    network.eval()
    most = network.roi_heads.detections_per_img
    # Of each image the number of detections; of each of them box, label and score.
    counts = torch.zeros(len(pictures), dtype=torch.int64)
    rows = torch.zeros(len(pictures), most, 6, dtype=torch.float64)
    own = range(ranks.number, len(pictures), ranks.count)
    shown = test_images(data, [pictures[place] for place in own], runtime.device)
    for place, (picture, images) in zip(own, shown, strict=True):
        images.tensors = images.tensors.contiguous(memory_format=runtime.memory_format)
        with arithmetic(precision), mixed(precision, runtime.device):
            (detected,) = network.detect(images)
        height, width = images.image_sizes[0]
        across, down = picture.width / width, picture.height / height
        boxes = detected["boxes"].cpu() * torch.tensor([across, down, across, down])
        counts[place] = len(boxes)
        rows[place, : len(boxes), :4] = boxes.double()
        rows[place, : len(boxes), 4] = detected["labels"].cpu().double()
        rows[place, : len(boxes), 5] = detected["scores"].cpu().double()
    network.train(training)
    ranks.add_up([counts, rows])
    found = [
        Found(picture.id, of[:n, :4], of[:n, 4].long(), of[:n, 5])
        for picture, n, of in zip(pictures, counts.tolist(), rows, strict=True)
    ]
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
