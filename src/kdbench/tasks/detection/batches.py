"""Batches from image files: the same images, sizes and flips in the same order after a resume."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

from kdbench.data.augmentation.views import epoch_plan, normalise
from kdbench.methods.base import Method
from kdbench.seeds import derive
from kdbench.tasks.detection.annotations import Picture, Target
from kdbench.tasks.detection.coco import DetectionData, read_picture, scaled_size
from kdbench.tasks.task import Company, Inputs, Step

Key = TypeVar("Key")
Value = TypeVar("Value")
NONE = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))  # of a test image
STRIDE = 32  # of the backbone's deepest map: sides are padded to multiples of it
AHEAD = 3  # batches that are decoded in advance


class DetectionBatch(NamedTuple):
    """A micro-batch of one step."""

    images: ImageList  # normalised, padded with zeros at the right and below
    targets: list[dict[str, Tensor]]  # of each image "boxes" [n, 4] in its pixels, "labels" [n]
    index: Tensor  # type: ignore[assignment]  # hides tuple.index; [B] int64, training row
    epoch: Tensor  # [] float32, counts from 1
    drawn: Tensor | None = None  # the method's random numbers for this step


class TeacherOutputs(Protocol):
    """The source of the teachers' part of a step."""

    def outputs(self, batch: DetectionBatch, /) -> Any:
        """Return every teacher, ready to classify proposals in these images."""


class SharedBatches:
    """The batches of a cohort: read once for all its runs.

    The order of an epoch and each image's view follow from (seed, epoch) alone, and its last, short
    batch is kept, as in `kdbench.data.augmentation.views`.

    Args:
        company: what its runs share.
        data: the images and their boxes.
        teachers: the source of the teachers' part.
        infinite_teachers: names the teachers whose logits were not all finite.
        device: the runs' device.
        layout: the memory format of images.
    """

    def __init__(
        self,
        company: Company,
        data: DetectionData,
        teachers: TeacherOutputs,
        infinite_teachers: Callable[[], list[str]],
        device: torch.device,
        layout: torch.memory_format,
    ) -> None:
        self.company, self.data, self.teachers = company, data, teachers
        self.infinite_teachers = infinite_teachers
        self.device, self.layout = device, layout

    def steps(
        self, first: int, last: int, methods: Sequence[Method], stopped: Callable[[], bool]
    ) -> Iterator[Step]:
        """Yield the steps `first` to `last` - 1 (from 0, over all epochs).

        Raises:
            KdbenchError: an image cannot be read.
        """
        cutting, steps = self.company.cutting, range(first, last)
        seed = derive(self.company.seed, "data")
        # One plan for the steps and one for the images, which are read ahead of them.
        plan, further = (Plan(self.data, self.company.schedule.batch_size, seed) for _ in range(2))
        parts = (
            planned.part(part.place)
            for planned in map(further, steps)
            for part in cutting.parts(len(planned.rows))
        )
        read = train_batches(self.data, parts, self.device, self.layout)
        for planned in map(plan, steps):
            places = cutting.parts(len(planned.rows))
            found = itertools.islice(read, len(places))
            made = ((part, self.inputs(one)) for part, one in zip(places, found, strict=True))
            yield Step(torch.tensor(planned.rows, device=self.device), made)

    def inputs(self, batch: DetectionBatch) -> Inputs:
        """Return what every method sees of a batch: the same."""
        seen = batch, self.teachers.outputs(batch)
        return lambda method: seen


def train_batches(
    data: DetectionData,
    plans: Iterable["Planned"],
    device: torch.device,
    layout: torch.memory_format = torch.contiguous_format,
) -> Iterator[DetectionBatch]:
    """Yield the planned batches, read by threads some batches ahead.

    Raises:
        KdbenchError: an image cannot be read.
    """

    def load(planned: Planned) -> list[Tensor]:
        return [
            read_picture(data.train_folder, data.train[row], data.depth) for row in planned.rows
        ]

    for planned, pixels in ahead(load, plans):
        images, found = [], []
        for image, row, view in zip(pixels, planned.rows, planned.views, strict=True):
            chosen = data.views.decode(view)
            seen, target = prepared(image.to(device), data, *chosen, data.targets[row])
            images.append(seen)
            found.append({"boxes": target.boxes.to(device), "labels": target.labels.to(device)})
        listed = image_list(images)
        listed.tensors = listed.tensors.contiguous(memory_format=layout)
        epoch = torch.tensor(float(planned.epoch), device=device)
        yield DetectionBatch(listed, found, torch.tensor(planned.rows, device=device), epoch)


class Planned(NamedTuple):
    """The batch of one step, before anything is read."""

    epoch: int  # from 1
    rows: list[int]  # of the training set
    views: list[int]

    def part(self, place: slice) -> "Planned":
        """Return a micro-batch of it."""
        return Planned(self.epoch, self.rows[place], self.views[place])


class Plan:
    """The images of each step, and their views."""

    def __init__(self, data: DetectionData, size: int, seed: int) -> None:
        self.data, self.size, self.seed = data, size, seed
        self.steps_per_epoch = -(-len(data.train) // size)
        self.drawn: tuple[int, Tensor, Tensor] | None = None  # epoch, order and views of its images

    def __call__(self, step: int) -> Planned:
        """Return the plan of a step, from 0 over all epochs."""
        before, place = divmod(step, self.steps_per_epoch)
        if self.drawn is None or self.drawn[0] != before + 1:
            fresh = epoch_plan(len(self.data.train), self.data.views, self.seed, before + 1)
            self.drawn = (before + 1, *fresh)
        epoch, order, view = self.drawn
        rows = order[place * self.size :][: self.size]
        return Planned(epoch, rows.tolist(), view[rows].tolist())


def test_images(
    data: DetectionData, pictures: Sequence[Picture], device: torch.device
) -> Iterator[tuple[Picture, ImageList]]:
    """Yield each test image alone, so that its detections do not depend on other images.

    Raises:
        KdbenchError: an image cannot be read.
    """

    def load(picture: Picture) -> Tensor:
        return read_picture(data.test_folder, picture, data.depth)

    for picture, pixels in ahead(load, pictures):
        image, _ = prepared(pixels.to(device), data, data.test_size, False, NONE)
        yield picture, image_list([image])


def prepared(
    pixels: Tensor, data: DetectionData, shorter: int, flip: bool, target: Target
) -> tuple[Tensor, Target]:
    """Scale, flip and normalise an image, and its boxes with it.

    Args:
        pixels: the image uint8 [3, H, W] on the device.
        data: has the normalisation, and the maximal longer side.
        shorter: the shorter side to scale to, in pixels.
        flip: mirror the image.
        target: its boxes in the file's pixels.

    Returns:
        The image float32 [3, H', W'], and its boxes in pixels of that.
    """
    height, width = pixels.shape[1:]
    size = scaled_size(height, width, shorter, data.max_size)
    image = pixels[None].float()
    if size != [height, width]:
        image = F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)
    image = normalise(image, data.mean, data.std)[0]
    if flip:
        image = image.flip(-1)
    x1, y1, x2, y2 = target.boxes.unbind(1)
    if flip:
        x1, x2 = width - x2, width - x1
    across, down = size[1] / width, size[0] / height
    boxes = torch.stack([x1 * across, y1 * down, x2 * across, y2 * down], dim=1)
    return image, Target(boxes, target.labels)


def image_list(images: Sequence[Tensor]) -> ImageList:
    """Return images [3, H, W] as one batch [B, 3, H', W'], with the size of each."""
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = (-(-max(side) // STRIDE) * STRIDE for side in zip(*sizes, strict=True))
    padded = [
        F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images
    ]
    return ImageList(torch.stack(padded), sizes)


def ahead(load: Callable[[Key], Value], keys: Iterable[Key]) -> Iterator[tuple[Key, Value]]:
    """Yield each key with its `load`ed value, in order; threads work some keys ahead."""
    waiting: deque[tuple[Key, Future[Value]]] = deque()
    pool = ThreadPoolExecutor(AHEAD)  # Pillow decodes without holding the interpreter's lock
    try:
        for key in keys:
            waiting.append((key, pool.submit(load, key)))
            if len(waiting) > AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
