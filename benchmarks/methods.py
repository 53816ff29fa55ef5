"""What every method's step costs relative to KD's, side by side in one run.

    python -m benchmarks.methods > results/benchmarks/methods.json

resnet32x4 -> resnet8x4, batch 64, CIFAR-100's classes and sizes, random images. Each timed step of
a method stands between two of KD's; a ratio is that of their medians. "own" is the step with the
teacher's outputs at hand, as from a cache; "with_teacher" adds one live forward pass of every
teacher that the method reads. "state_bytes" are the method's own parameters and buffers; on a GPU
"peak_bytes" is the most memory that a step takes, student and method included, teachers not.
"""

import json
import statistics
import sys
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from benchmarks.common import DEVICE, seconds
from kdbench.assembly.build import build_method, set_up
from kdbench.assembly.method_pages import recipes
from kdbench.config.hydra_cli import compose_group
from kdbench.data.base import Dataset
from kdbench.data.memory.synthetic import synthetic
from kdbench.methods.base import Method
from kdbench.networks.forward import teacher_outputs
from kdbench.networks.resnet import resnet8x4, resnet32x4
from kdbench.schema.check import check_node
from kdbench.system.hardware import hardware, versions
from kdbench.tasks.classification.losses import losses_and_sums
from kdbench.training.optimizer import Optimizer
from kdbench.training.schedule import Schedule
from kdbench.training.step import train_step
from kdbench.types import Batch, Output

BATCH, CLASSES, STEPS = 64, 100, 3


@cache
def dataset(images: int) -> Dataset:
    """So many random images of CIFAR-100's size."""
    sizes = {"num_classes": CLASSES, "num_train": images, "num_test": 100, "image_size": 32}
    settings = {"mean": [0.5] * 3, "std": [0.25] * 3, "pad": 0, "flip": False, "val_split": 0}
    return synthetic(**sizes, **settings, seed=0)


def on_device(module: nn.Module) -> nn.Module:
    """Where and how the engine would keep it."""
    return module.to(DEVICE).to(memory_format=torch.channels_last)


class Stepper:
    """One method between the two networks, and a step of it with the teachers' outputs at hand."""

    def __init__(self, name: str, teacher: nn.Module) -> None:
        node = check_node("method", compose_group("method", name))
        self.method: Method = build_method(node, seed=0)
        # Banks have the real number of rows; the others' steps do not know how many images there
        # are, and a teacher's class means over all of them would take long.
        data = dataset(50_000 if hasattr(self.method, "num_negatives") else 1000)
        count = 3 if self.method.num_teachers is None else self.method.num_teachers
        teachers = {f"teacher{i}": teacher for i in range(count)}
        student = on_device(set_up(self.method, resnet8x4(CLASSES), teachers, data, seed=0))
        self.student, self.teachers = student.train(), count
        on_device(self.method)
        self.optimizer = Optimizer(Schedule(1, BATCH, 1e-4, []), self.student, self.method)
        self.generator = torch.Generator(DEVICE).manual_seed(0)

    def step(self, batches: dict[int, Batch], answers: dict[int, Output]) -> None:
        """One update."""
        views = self.method.views
        outputs = (answers[views],) * self.teachers
        parts = self.optimizer, batches[views], self.generator, losses_and_sums
        train_step(self.student, self.method, outputs, *parts)

    def bytes(self) -> int:
        """What the method keeps beside the student."""
        kept = [*self.method.parameters(), *self.method.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)


Given = tuple[dict[int, Batch], dict[int, Output]]


def compare(
    name: str, teacher: nn.Module, kd: Stepper, given: Given, forward: float, n: int
) -> dict[str, float]:
    """A method's costs; `forward` is the time of a teacher's forward, `n` the number of steps."""
    on_gpu = DEVICE.type == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else 0
    method = Stepper(name, teacher)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    method.step(*given)
    memory: dict[str, float] = {"state_bytes": method.bytes()}
    if on_gpu:
        memory["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    pairs = [
        (seconds(partial(kd.step, *given)), seconds(partial(method.step, *given))) for _ in range(n)
    ]
    base, own = (statistics.median(column) for column in zip(*pairs, strict=True))
    live = forward * method.teachers * method.method.views
    ratios = {"own": own / base, "with_teacher": (own + live) / (base + forward)}
    return {key: round(value, 3) for key, value in ratios.items()} | memory


def measure(steps: int = STEPS) -> dict[str, Any]:
    """The first file of each recipe in conf/method; the others are settings of it."""
    teacher = on_device(resnet32x4(CLASSES)).eval().requires_grad_(False)
    images = torch.randn(BATCH, 3, 32, 32).to(DEVICE, memory_format=torch.channels_last)
    index = torch.arange(BATCH, device=DEVICE)
    labels, epoch = dataset(1000).train.labels[:BATCH].to(DEVICE), torch.tensor(30.0, device=DEVICE)
    batches = {
        views: Batch(stack, labels, index, epoch)
        for views, stack in ((1, images), (2, torch.stack([images, images])))
    }
    answers = {views: teacher_outputs([teacher], batch)[0] for views, batch in batches.items()}
    forward = statistics.median(
        seconds(lambda: teacher_outputs([teacher], batches[1])) for _ in range(steps)
    )
    kd, given = Stepper("kd", teacher), (batches, answers)
    kd.step(*given)
    found = {}
    for name in recipes():
        found[name] = compare(name, teacher, kd, given, forward, steps)
        print(f"(e) {name}: {found[name]}", file=sys.stderr)
    machine = hardware(DEVICE)
    note = (
        "*Step* is the time of a training step with the teacher's outputs at hand, *with teacher*\n"
        "that of one with the live teacher, both relative to KD's in one benchmark run (batch 64,\n"
        f"{machine.get('gpu', machine['cpu'])}, {machine['threads']} threads, {steps} interleaved\n"
        "steps; `python -m benchmarks.methods`)."
    )
    return {"note": note, "hardware": machine, "versions": versions(), "methods": found}


def main() -> None:
    """Measure every method and print JSON."""
    print(json.dumps(measure(), indent=1))


if __name__ == "__main__":
    main()
