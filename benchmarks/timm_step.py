"""A step of deit_tiny with DeiT's recipe: kdbench's against that of timm's own training loop.

    python -m benchmarks.timm_step

Both start from the same uint8 images of 224 pixels on the device and end with the moving average of
the weights: normalisation, mixup and CutMix, forward and backward pass, AdamW, ModelEmaV3. timm's
is the inner loop of its train.py, with the normalisation of its loader; decoding and flips are in
neither. The last line is one JSON object: the ratio within a round of alternating turns.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from timm import create_model
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

from benchmarks.common import DEVICE, MEAN, STD, line, ratio, turns
from kdbench.assembly.build import build_student
from kdbench.data.base import Dataset
from kdbench.data.memory.synthetic import synthetic
from kdbench.methods.ce import CE
from kdbench.schema.node import Node
from kdbench.system.console import Console
from kdbench.system.hardware import hardware, versions
from kdbench.system.runtime import Runtime
from kdbench.tasks.classification.rehearsal import ClassificationRehearsal
from kdbench.teachers.outputs import LiveTeachers
from kdbench.training.cohort import Cohort
from kdbench.training.member import Member
from kdbench.training.schedule import Schedule
from kdbench.training.together import company_of

CLASSES, DECAY, RATE = 1000, 0.05, 1e-5


def dataset(count: int, side: int) -> Dataset:
    """Synthetic images of ImageNet's size and classes."""
    settings = {"mean": list(MEAN), "std": list(STD), "pad": 0, "flip": False, "val_split": 0}
    return synthetic(CLASSES, count, 2, image_size=side, seed=0, **settings)


class Ours:
    """kdbench's step."""

    def __init__(self, model: str, data: Dataset, batch: int) -> None:
        node = Node("kdbench.networks.tapped.timm_model", {"model": model}, model)
        schedule = Schedule(
            1, batch, RATE, [], weight_decay=DECAY, optimizer="adamw", filter_bias_and_bn=True,
            label_smoothing=0.1, mixup=0.8, cutmix=1.0, ema_decay=0.99996,
        )  # fmt: skip
        runtime = Runtime(device="cuda" if DEVICE.type == "cuda" else "cpu")
        student = build_student(node, data, 0)
        task = ClassificationRehearsal(data, batch, runtime, schedule.precision)
        what = "bench", 0, student, CE(), task, schedule, Path(), Console()
        member = Member(*what, [])
        batches = task.batches_with(company_of([member]), LiveTeachers([], runtime, print))
        self.cohort, self.batches = Cohort([member], batches, Console()), batches
        self.cohort.each(Member.start_row)

    def __call__(self) -> None:
        """One step, from cutting to the moving average."""
        methods = [member.method for member in self.cohort.members]
        self.cohort.train_step(next(self.batches.steps(0, 1, methods, lambda: False)))
        for member in self.cohort.members:
            if member.error is not None:
                raise member.error


class Timms:
    """The step of timm's train.py."""

    def __init__(self, model: str, data: Dataset, batch: int) -> None:
        self.images = data.train.images[:batch].to(DEVICE)
        self.labels = data.train.labels[:batch].to(DEVICE)
        self.mean, self.std = (
            torch.tensor([255 * value for value in values], device=DEVICE).view(1, 3, 1, 1)
            for values in (MEAN, STD)
        )
        self.model: nn.Module = create_model(model, num_classes=CLASSES).to(DEVICE).train()
        self.optimizer = create_optimizer_v2(self.model, "adamw", lr=RATE, weight_decay=DECAY)
        self.mixup = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=CLASSES)
        self.loss, self.ema = SoftTargetCrossEntropy(), ModelEmaV3(self.model, 0.99996)
        self.updates = 0

    def __call__(self) -> None:
        """One step, from normalisation to the moving average."""
        images = self.images.float().sub_(self.mean).div_(self.std)
        images, targets = self.mixup(images, self.labels)
        self.loss(self.model(images), targets).backward()
        self.optimizer.step()
        self.updates += 1
        self.ema.update(self.model, step=self.updates)
        self.optimizer.zero_grad()


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timm_step")
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    data = dataset(given.batch, given.side)
    contestants: dict[str, Callable[[], object]] = {
        "kdbench": Ours(given.model, data, given.batch),
        "timm": Timms(given.model, data, given.batch),
    }
    times = turns(contestants, given.rounds, 600.0)
    found = ratio(times, "kdbench", "timm")
    print(line(f"kdbench's step of {given.model} over timm's", found))
    facts = {"versions": versions(), "hardware": hardware(DEVICE), **vars(given)}
    print(json.dumps({"ratio": found, **facts}))


if __name__ == "__main__":
    main()
