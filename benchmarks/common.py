"""What the parts share: their sizes, synthetic data of CIFAR-100's kind, the pair, and ratios."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdbench.assembly.build import build_student
from kdbench.config.hydra_cli import compose_group
from kdbench.config.kinds import SHAPED_BY_DATA
from kdbench.data.base import Dataset
from kdbench.data.memory.synthetic import synthetic
from kdbench.records.record import code_version
from kdbench.schema.check import check_node
from kdbench.schema.node import Node
from kdbench.system.files import write_atomically
from kdbench.system.hardware import hardware, versions

CLASSES = 100
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)  # conf/dataset/cifar100.yaml
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 5e-4  # small: a timed student must not diverge
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    student: str = "resnet8x4"
    teacher: str = "resnet32x4"
    batch: int = 64
    steps: int = 4  # in one turn of a contestant
    rounds: int = 12  # turns of each; fewer where `seconds` are over, but 3 or more
    seconds: float = 900.0  # for the turns of steps
    run_images: int = 12_000_000  # of the run that is timed, 240 epochs of CIFAR-100: in a long one
    #                               networks are compiled
    images: int = 6400  # that the input pipelines deliver in a turn
    input_rounds: int = 10
    methods: int = 3  # steps of every method in part (e); 0: left out
    every_pair: bool = True  # in part (f), which also tries every batch and cohort then


STEPS = 10 if DEVICE.type == "cuda" else 1  # of QUICK; a GPU's are short, its first ones recorded
FULL = Sizes(steps=max(STEPS, 4))
QUICK = Sizes(steps=STEPS, seconds=110.0, images=1280, input_rounds=7, methods=0, every_pair=False)
TINY = Sizes("resnet8", "resnet14", 16, 1, 3, 0.0, 0, 64, 3, 0)  # for the tests


def dataset(images: int, test: int = CLASSES) -> Dataset:
    """Synthetic images of CIFAR-100's classes, size and views."""
    settings = {"mean": list(MEAN), "std": list(STD), "pad": 4, "flip": True, "val_split": 0}
    return synthetic(CLASSES, images, test, image_size=32, seed=0, **settings)


def network(name: str, data: Dataset, seed: int = 0) -> nn.Module:
    """A network of conf/student; equal for equal seeds."""
    return build_student(_node(name), data, seed)


@cache
def _node(name: str) -> Node:
    return check_node("student", compose_group("student", name), given=SHAPED_BY_DATA)


def teacher(name: str, data: Dataset) -> nn.Module:
    """A frozen network with random weights; its BN has seen images and its answers are not flat."""
    found = network(name, data, seed=1)
    found.train()
    for layer in found.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # a cumulative mean
    images = data.train.images[:64].float().div(255).sub(0.5).div(0.25)
    with torch.no_grad():
        found(images)
        linears = [layer for layer in found.modules() if isinstance(layer, nn.Linear)]
        linears[-1].weight.mul_(10)  # the classifier
    return found.eval().requires_grad_(False)


def synchronise() -> None:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes, to the end of its kernels."""
    synchronise()
    started = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - started


def turns(
    contestants: dict[str, Callable[[], object]], rounds: int, budget: float
) -> dict[str, list[float]]:
    """Seconds of every contestant's turns, which alternate; the order turns round every time.

    Each has one turn before that is not counted. Other load on the machine therefore meets all of
    them alike, and a ratio is formed within a round.
    """
    for call in contestants.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    started = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - started > budget:
            break
        names = list(contestants) if done % 2 == 0 else list(reversed(contestants))
        for name in names:
            times[name].append(seconds(contestants[name]))
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles, smallest, largest, count."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    numbers = {"median": middle, "q1": low, "q3": high, "min": min(values), "max": max(values)}
    return {key: round(value, 4) for key, value in numbers.items()} | {"n": len(values)}


def ratio(times: dict[str, list[float]], name: str, base: str, per: int = 1) -> dict[str, float]:
    """The spread of a time over the base's time in the same round, divided by `per`."""
    pairs = zip(times[name], times[base], strict=True)
    return spread([one / other / per for one, other in pairs])


def line(text: str, found: dict[str, float]) -> str:
    """A ratio for people."""
    return (
        f"  {text:<58} {found['median']:7.3f}   quartiles {found['q1']:.3f} to {found['q3']:.3f}"
        f", n {found['n']}"
    )


def endless(make_epoch: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from make_epoch()


class Rows:
    """Rows of a measurement in a JSON file, which is written anew after each of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.facts = {
            "hardware": hardware(DEVICE),
            "versions": versions(),
            "commit": code_version(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, and print it."""
        self.rows.append(row)
        text = json.dumps({**self.facts, "rows": self.rows}, indent=1) + "\n"
        write_atomically(self.path, text.encode())
        print(json.dumps(row), flush=True)


def replayed(run: Callable[[], object], calls: int) -> Callable[[], object]:
    """Return a call that runs this so many times, on a GPU as one CUDA graph."""

    def repeated() -> None:
        for _ in range(calls):
            run()

    if DEVICE.type != "cuda":
        return repeated
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        repeated()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        repeated()
    return graph.replay


def asked(description: str | None) -> tuple[Rows, bool]:
    """Return the rows of the file that a command names, and whether it asks for a small run."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tiny", action="store_true", help="a few seconds' worth, for the tests")
    arguments = parser.parse_args()
    return Rows(arguments.file), arguments.tiny
