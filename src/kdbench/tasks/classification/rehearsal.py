"""Classification on one batch, to time its parts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from kdbench.assembly.build import fit
from kdbench.assembly.probes import TrainingSet, training_set
from kdbench.data.base import Dataset, Split
from kdbench.methods.base import Method
from kdbench.system.precision import Precision
from kdbench.system.runtime import Runtime
from kdbench.tasks.classification.batches import SharedBatches
from kdbench.tasks.classification.task import Classification
from kdbench.tasks.task import Batches, Company, Rehearsal, Report
from kdbench.teachers.frozen import CHUNK, freeze
from kdbench.teachers.outputs import LiveTeachers
from kdbench.types import Batch, Output

TEST_IMAGES = 512  # the images of a timed evaluation


class ClassificationRehearsal(Classification, Rehearsal):
    """Classification of one batch of images; its teachers are not compiled."""

    def __init__(self, data: Dataset, size: int, runtime: Runtime, precision: Precision) -> None:
        super().__init__(piece(data, size), runtime, precision)

    def set_up(
        self, method: Method, student: nn.Module, teachers: Mapping[str, nn.Module], seed: int
    ) -> nn.Module:
        """Let a method build what it needs, as if the batch had images of every class."""
        return fit(method, student, teachers, of_every_class(self.data), seed)

    def live(self, teachers: Sequence[nn.Module], report: Report) -> LiveTeachers:
        """Prepare teachers for their forward passes."""
        rows = torch.zeros(min(CHUNK, 2), dtype=torch.int64).to(self.runtime.device)
        given = self.cut.batch(rows, rows), self.precision, self.runtime, 0, report
        return LiveTeachers([freeze(one, *given) for one in teachers], self.runtime, report)

    def batches_with(self, company: Company, live: LiveTeachers) -> Batches:
        """Return batches with the outputs of `live` on the first one at hand."""
        layout = self.runtime.memory_format
        return SharedBatches(company, self.data, self.cut, OutputsAtHand(live), list, layout)


class OutputsAtHand:
    """A placeholder for a filled output cache: every batch gets the outputs of the first one."""

    def __init__(self, live: LiveTeachers) -> None:
        self.live = live
        self.kept: dict[int, dict[int, tuple[Output, ...]]] = {}

    def start_epoch(self, view: Tensor, stopped: Callable[[], bool]) -> None:
        """Do nothing: no outputs are prepared."""

    def by_views(self, batch: Batch) -> dict[int, tuple[Output, ...]]:
        """Return all teachers' outputs on the first batch with that many views."""
        views = batch.images.ndim
        if views not in self.kept:
            self.kept[views] = self.live.by_views(batch)
        return self.kept[views]


def of_every_class(data: Dataset) -> TrainingSet:
    """Return what a method sees of a piece as if it had two images of every class, as all data."""
    known, count = training_set(data), len(data.train.labels)
    labels = torch.arange(max(2 * data.num_classes, count)) % data.num_classes
    images = known.images
    assert images is not None
    return known._replace(labels=labels, images=lambda rows: images(rows % count))


def piece(dataset: Dataset, batch: int) -> Dataset:
    """Return a data set of one full training batch and some test images."""
    count = min(batch, len(dataset.train.labels))
    train, test = first(dataset.train, count), first(dataset.test, TEST_IMAGES)
    return dataclasses.replace(dataset, train=train, test=test, val=None)


def first(split: Split, count: int) -> Split:
    """Return the first `count` images of a split, or all where there are fewer."""
    count = min(count, len(split.labels))
    return Split(split.images.narrow(0, 0, count), split.labels[:count])
