"""Batches of classifiers: cut once for all runs of a cohort, with its teachers' outputs."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from kdbench.data.augmentation.batches import Changed, ChangedBatches
from kdbench.data.augmentation.strong import StrongView, stack_views
from kdbench.data.augmentation.views import Pixels, TrainImages, epoch_plan, unchanged
from kdbench.data.base import Dataset
from kdbench.data.streaming.streamed import StreamedImages
from kdbench.methods.base import Method
from kdbench.parallel.micro_batches import Part
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
        self.num_classes, self.mean = dataset.num_classes, dataset.mean
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
        schedule, device = self.company.schedule, self.labels.device
        order = order.repeat_interleave(schedule.repeats)[: len(order)]
        changes, sizes = schedule.batch_changes, (self.images.height, self.images.width)
        known = len(order), sizes, self.num_classes, seed, epoch, device
        change = ChangedBatches(changes, *known) if changes.any else None
        self.outputs.start_epoch(view, stopped)
        epoch_tensor = torch.tensor(float(epoch), device=self.labels.device)
        wanted = {method.views for method in methods}
        strong = StrongView(self.images, seed, epoch) if max(wanted) > 1 else None

        def views_of(first: int, index: Tensor, cut: Tensor) -> Views:
            seen = Changed(cut, self.labels[index], None)
            if change is not None:
                seen = change(cut, seen.labels, first)
            views = [seen.images]
            if strong is not None:
                views.append(strong.batch(index))
            stacks = {n: stack_views(views[:n], self.memory_format) for n in wanted}
            rest = seen.labels, index, epoch_tensor, None, seen.targets
            return {n: Batch(x, *rest) for n, x in stacks.items()}

        given = size, start, cutting.cut, schedule.repeats > 1, self.pixels_of(seed, epoch)
        images = self.images.epoch(order, view, *given)
        for number, index in enumerate(order.to(device).split(size)[start:end], start):
            places = cutting.parts(len(index))
            found = zip(places, itertools.islice(images, len(places)), strict=True)
            yield Step(index, self.parts(number * size, found, views_of))

    def parts(
        self,
        start: int,
        found: Iterable[tuple[Part, tuple[Tensor, Tensor]]],
        views_of: Callable[[int, Tensor, Tensor], Views],
    ) -> Iterator[tuple[Part, Inputs]]:
        """Yield a step's micro-batches; `start` is its first image's place in the epoch."""
        for part, (index, cut) in found:
            yield part, self.inputs(views_of(start + part.place.start, index, cut))

    def pixels_of(self, seed: int, epoch: int) -> Pixels:
        """Return what is done to an epoch's pixels before they are normalised."""
        text = self.company.schedule.rand_augment
        if text is None:
            return unchanged
        from kdbench.data.augmentation.timm_randaugment import EpochRandAugment, policy_of

        return EpochRandAugment(policy_of(text, self.mean, self.images.width), seed, epoch)

    def inputs(self, batches: Views) -> Inputs:
        """Return what a method sees of a batch: as many views as it asks for."""
        outputs = self.outputs.by_views(batches[max(batches)])
        return partial(_of_method, batches, outputs)


def _of_method(
    batches: Views, outputs: dict[int, tuple[Output, ...]], method: Method
) -> tuple[Batch, tuple[Output, ...]]:
    return batches[method.views], outputs[method.views]
