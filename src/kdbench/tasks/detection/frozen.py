"""Frozen detectors in training steps: their maps are shared, their logits are each student's."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from kdbench.system.precision import Precision, arithmetic, mixed
from kdbench.tasks.detection.batches import DetectionBatch
from kdbench.tasks.detection.networks import Detector
from kdbench.types import Output


class FrozenDetector:
    """A frozen detector at the precision of a run."""

    def __init__(self, network: Detector, precision: Precision) -> None:
        self.network, self.precision = network, precision
        self._infinite: Tensor | None = None  # [] bool on the device

    @torch.no_grad()
    def see(self, images: ImageList) -> "Taught":
        """Return the teacher, ready to classify proposals in these images."""
        with arithmetic(self.precision), mixed(self.precision, images.tensors.device):
            return Taught(self, images, self.network.maps(images))

    @torch.no_grad()
    def output(self, images: ImageList, maps: dict[str, Tensor], proposals: list[Tensor]) -> Output:
        """Return the logits [R, K] of proposals over these maps, without waiting for the device."""
        with arithmetic(self.precision), mixed(self.precision, images.tensors.device):
            output = self.network.output(images, maps, proposals)
        odd = ~output.logits.isfinite().all()
        self._infinite = odd if self._infinite is None else self._infinite | odd
        return output

    def was_infinite(self) -> bool:
        """Return whether any logit so far was not finite."""
        return self._infinite is not None and bool(self._infinite.item())


class Taught(NamedTuple):
    """A teacher's part of a step: it classifies each student's own proposals over its maps."""

    teacher: FrozenDetector
    images: ImageList
    maps: dict[str, Tensor]

    def output(self, proposals: list[Tensor]) -> Output:
        """Return its logits [R, K] of a student's proposals, and its maps."""
        found = [one.detach() for one in proposals]
        return self.teacher.output(self.images, self.maps, found)


class LiveDetectors:
    """Frozen teachers by name, which see every batch."""

    def __init__(self, teachers: Mapping[str, nn.Module], precision: Precision) -> None:
        self.frozen = {
            name: FrozenDetector(network, precision)
            for name, network in teachers.items()
            if isinstance(network, Detector)
        }

    def outputs(self, batch: DetectionBatch) -> tuple[Taught, ...]:
        """Return every teacher, ready to classify proposals in these images."""
        return tuple(one.see(batch.images) for one in self.frozen.values())
