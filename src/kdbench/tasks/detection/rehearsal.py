"""Detection on one batch, to time its parts."""

import dataclasses
from collections.abc import Sequence

from torch import nn

from kdbench.system.precision import Precision
from kdbench.system.runtime import Runtime
from kdbench.tasks.detection.batches import DetectionBatch, SharedBatches
from kdbench.tasks.detection.coco import DetectionData, ScaledViews
from kdbench.tasks.detection.frozen import LiveDetectors, Taught
from kdbench.tasks.detection.task import Detection
from kdbench.tasks.task import Batches, Company, LiveTeachers, Rehearsal, Report

TEST_IMAGES = 4  # the images of a timed evaluation


class DetectionRehearsal(Detection, Rehearsal):
    """Detection in one batch of images, at the middle one of their sizes."""

    def __init__(
        self, data: DetectionData, size: int, runtime: Runtime, precision: Precision
    ) -> None:
        super().__init__(piece(data, size), runtime, precision)

    def live(self, teachers: Sequence[nn.Module], report: Report) -> LiveDetectors:
        """Prepare teachers for their forward passes."""
        named = {str(number): network for number, network in enumerate(teachers)}
        return LiveDetectors(named, self.precision)

    def batches_with(self, company: Company, live: LiveTeachers) -> Batches:
        """Return batches with the outputs of `live` on the first one at hand."""
        where = self.runtime.device, self.runtime.memory_format
        return SharedBatches(company, self.data, AtHand(live), list, *where)


class AtHand:
    """Every batch gets the maps of the first one of its size; proposals are classified anew."""

    def __init__(self, live: LiveTeachers) -> None:
        self.live = live
        self.kept: dict[tuple[int, ...], tuple[Taught, ...]] = {}

    def outputs(self, batch: DetectionBatch) -> tuple[Taught, ...]:
        """Return every teacher with the maps of the first batch."""
        shape = tuple(batch.images.tensors.shape)
        if shape not in self.kept:
            self.kept[shape] = self.live.outputs(batch)
        return self.kept[shape]


def piece(data: DetectionData, size: int) -> DetectionData:
    """Return one full batch of the data, and some test images."""
    sizes = sorted(data.views.sizes)
    pictures = data.test.pictures[:TEST_IMAGES]
    known = {picture.id for picture in pictures}
    boxes = [box for box in data.test.boxes if box.image in known]
    return dataclasses.replace(
        data,
        train=data.train[:size],
        targets=data.targets[:size],
        test=data.test._replace(pictures=pictures, boxes=boxes),
        views=ScaledViews((sizes[len(sizes) // 2],), flip=False),
    )
