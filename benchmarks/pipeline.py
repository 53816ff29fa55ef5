"""(a) Images per second and core: kdbench's input pipeline against DataLoader, PIL and torchvision.

Both on one thread of the CPU, both deliver normalised float batches of random crops and flips. The
images are the real CIFAR-100 where KDBENCH_DATA has it (torchvision's own class), else random.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torchvision.datasets import CIFAR100

from benchmarks.common import MEAN, STD, Sizes, dataset, endless, line, ratio, spread, turns
from benchmarks.plain_loop import TRANSFORM, Labelled, PictureSet, loader
from kdbench.data.augmentation.views import TrainImages, epoch_plan
from kdbench.data.base import Dataset
from kdbench.data.memory.torchvision_sets import cifar100
from kdbench.data.streaming.streamed import images_of

CPU = torch.device("cpu")


def sources(images: int) -> tuple[str, Dataset, TorchDataset[Labelled]]:
    """What the images are, for kdbench and for the DataLoader."""
    root = Path(os.environ.get("KDBENCH_DATA", "data"))
    if (root / "cifar-100-python" / "train").is_file():
        settings = {"mean": list(MEAN), "std": list(STD), "pad": 4, "flip": True, "val_split": 0}
        data = cifar100(str(root), download=False, **settings)
        return "cifar100", data, CIFAR100(root, train=True, transform=TRANSFORM)
    data = dataset(max(images, 64))
    return "synthetic", data, PictureSet(data.train)


def batches_of(data: Dataset, batch: int) -> Iterator[Tensor]:
    """kdbench's batches, epoch after epoch; the plan of an epoch is part of the cost."""
    images = images_of(data, CPU)
    assert isinstance(images, TrainImages)
    epoch = 0
    while True:
        epoch += 1
        order, view = epoch_plan(len(data.train.labels), data.views, 0, epoch)
        for index in order.split(batch):
            yield images.batch(index, view[index]).to(memory_format=torch.channels_last)


def take(batches: Iterator[Any], count: int) -> None:
    """Let so many batches be made."""
    for _ in range(count):
        next(batches)


def measure(sizes: Sizes) -> dict[str, Any]:
    """The ratio of images per second and core, and both rates."""
    name, data, pictures = sources(sizes.images)
    count = max(1, sizes.images // sizes.batch)
    ours = batches_of(data, sizes.batch)
    plain = loader(pictures, sizes.batch, workers=0)
    theirs = endless(lambda: iter(plain))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        contestants: dict[str, Callable[[], object]] = {
            "kdbench": lambda: take(ours, count),
            "dataloader": lambda: take(theirs, count),
        }
        times = turns(contestants, sizes.input_rounds, 60.0)
    finally:
        torch.set_num_threads(threads)
    found = ratio(times, "dataloader", "kdbench")  # times: the slower one is the numerator
    rates = {
        key: spread([count * sizes.batch / value for value in values])
        for key, values in times.items()
    }
    print(f"(a) input pipeline, {name}, batch {sizes.batch}, images/s on one core")
    for key, rate in rates.items():
        print(f"  {key:<58} {rate['median']:9,.0f}")
    print(line("kdbench relative to DataLoader + PIL (5 or more)", found), flush=True)
    return {"data": name, "ratio": found, "images_per_second_per_core": rates}
