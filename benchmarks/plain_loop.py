"""The loop that a user would write, and that the peers run: the measure of every ratio.

DataLoader, PIL and torchvision's transforms; networks eager and NCHW; the teacher live; the loss
and the hits read back every step. On the CPU the loader works in the training process, which is
the faster of the two choices on two cores; on a GPU it has workers, as the peers have.
"""

import os
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from benchmarks.common import DEVICE, LEARNING_RATE, MEAN, MOMENTUM, STD, WEIGHT_DECAY
from kdbench.data.base import Split

TEMPERATURE, CE_WEIGHT, KD_WEIGHT = 4.0, 0.1, 0.9  # conf/method/kd.yaml
Labelled = tuple[Tensor, int]
WORKERS = 0 if DEVICE.type == "cpu" else min(8, os.cpu_count() or 1)
TRANSFORM = transforms.Compose(
    [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)


class PictureSet(TorchDataset[Labelled]):
    """Images in memory as torchvision's CIFAR classes keep and hand them out."""

    def __init__(self, split: Split) -> None:
        assert isinstance(split.images, Tensor)
        self.images = np.ascontiguousarray(split.images.permute(0, 2, 3, 1).numpy())
        self.labels = split.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Labelled:
        return TRANSFORM(Image.fromarray(self.images[index])), self.labels[index]


def loader(
    pictures: TorchDataset[Labelled], batch: int, workers: int = WORKERS
) -> DataLoader[Labelled]:
    """The usual loader."""
    return DataLoader(
        pictures,
        batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=DEVICE.type == "cuda",
    )


def kd_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """0.1 CE + 0.9 T^2 KL at T = 4, with torch's own functions."""
    soft = F.kl_div(
        (student / TEMPERATURE).log_softmax(1),
        (teacher / TEMPERATURE).softmax(1),
        reduction="batchmean",
    )
    return CE_WEIGHT * F.cross_entropy(student, labels) + KD_WEIGHT * TEMPERATURE**2 * soft


class PlainLoop:
    """KD in plain PyTorch."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        self.student, self.teacher = student.to(DEVICE).train(), teacher.to(DEVICE).eval()
        self.sgd = torch.optim.SGD(
            student.parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )

    def step(self, images: Tensor, labels: Tensor) -> float:
        """One update; returns the loss."""
        images, labels = images.to(DEVICE), labels.to(DEVICE)
        with torch.no_grad():
            targets = self.teacher(images).logits
        logits = self.student(images).logits
        loss = kd_loss(logits, targets, labels)
        self.sgd.zero_grad()
        loss.backward()
        self.sgd.step()
        self.hits = (logits.argmax(1) == labels).sum().item()
        return loss.item()

    def steps(self, batches: Iterator[tuple[Tensor, Tensor]], count: int) -> None:
        """Updates on the next batches."""
        for _ in range(count):
            self.step(*next(batches))
