"""Batches of classifiers: cut once for all runs of a cohort, with its teachers' outputs."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from kdbench.data.augmentation.strong import StrongView, stack_views
from kdbench.data.augmentation.views import TrainImages, epoch_plan
from kdbench.data.base import Dataset
from kdbench.data.streaming.streamed import StreamedImages
from kdbench.methods.base import Method
from kdbench.seeds import derive
from kdbench.tasks.task import Company, Inputs, Step
from kdbench.types import Batch, Output

Views = dict[int, Batch]  # the same images by the number of their views


class TeacherOutputs(Protocol):
    """The source of the teachers' outputs; `kdbench.teachers.outputs` has the implementations."""

    def start_epoch(self, view: Tensor, stopped: Callable[[], bool]) -> None:
        """Prepare the outputs on every image's view [N]; may return early once `stopped()`."""

    def by_views(self, batch: Batch) -> dict[int, tuple[Output, ...]]:
        """Return all teachers' outputs on the first view of a batch, the first two, ... all."""


class SharedBatches:
    """The batches of a cohort; the last, short batch of an epoch is kept.

    Args:
        company: what its runs share.
        dataset: the labels and the views.
        images: the images, of which views are cut.
        outputs: the teachers' outputs.
        infinite_teachers: names the teachers whose outputs were not all finite.
        memory_format: that of the images.
    """

    def __init__(
        self,
        company: Company,
        dataset: Dataset,
        images: TrainImages | StreamedImages,
        outputs: TeacherOutputs,
        infinite_teachers: Callable[[], list[str]],
        memory_format: torch.memory_format,
    ) -> None:
        self.company, self.views, self.images = company, dataset.views, images
        self.outputs, self.infinite_teachers = outputs, infinite_teachers
        self.memory_format = memory_format
        self.labels = dataset.train.labels.to(images.device)
        self.epoch_steps = math.ceil(len(self.labels) / company.schedule.batch_size)

    def steps(
        self, first: int, last: int, methods: Sequence[Method], stopped: Callable[[], bool]
    ) -> Iterator[Step]:
        """Yield the steps `first` to `last` - 1 (from 0, over all epochs) for these methods."""
        while first < last:
            done, start = divmod(first, self.epoch_steps)
            end = min(last - done * self.epoch_steps, self.epoch_steps)
            yield from self._epoch(done + 1, start, end, methods, stopped)
            first = done * self.epoch_steps + end

    def _epoch(
        self,
        epoch: int,
        start: int,
        end: int,
        methods: Sequence[Method],
        stopped: Callable[[], bool],
    ) -> Iterator[Step]:
        """Yield the steps `start` to `end` - 1 of an epoch (from 1)."""
        size, cutting = self.company.schedule.batch_size, self.company.cutting
        seed = derive(self.company.seed, "data")
        order, view = epoch_plan(len(self.labels), self.views, seed, epoch)
        self.outputs.start_epoch(view, stopped)
        epoch_tensor = torch.tensor(float(epoch), device=self.labels.device)
        wanted = {method.views for method in methods}
        strong = StrongView(self.images, seed, epoch) if max(wanted) > 1 else None

        def views_of(index: Tensor, cut: Tensor) -> Views:
            views = [cut]
            if strong is not None:
                views.append(strong.batch(index))
            stacks = {n: stack_views(views[:n], self.memory_format) for n in wanted}
            return {n: Batch(x, self.labels[index], index, epoch_tensor) for n, x in stacks.items()}

        images = self.images.epoch(order, view, size, start, cutting.cut)
        for index in order.to(self.labels.device).split(size)[start:end]:
            places = cutting.parts(len(index))
            found = itertools.islice(images, len(places))
            parts = (
                (part, self.inputs(views_of(*one))) for part, one in zip(places, found, strict=True)
            )
            yield Step(index, parts)

    def inputs(self, batches: Views) -> Inputs:
        """Return what a method sees of a batch: as many views as it asks for."""
        outputs = self.outputs.by_views(batches[max(batches)])
        return partial(_of_method, batches, outputs)


def _of_method(
    batches: Views, outputs: dict[int, tuple[Output, ...]], method: Method
) -> tuple[Batch, tuple[Output, ...]]:
    return batches[method.views], outputs[method.views]
