"""Third question on a GPU: does a stacked student end where it ends alone, and what is an epoch?

    python -m benchmarks.fused_runs FILE [--tiny]

First the weights after 18 steps in float32, fused against alone: a row for each method with the
norm of the difference, relative to that of the weights. Then one epoch of CIFAR-100's length with
its evaluation for 8 and 20 methods in bf16. FILE is JSON, written anew after every row.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.common import DEVICE, FULL, TINY, Rows, Sizes, asked, seconds
from benchmarks.engine import Bench, Choice, Contestant
from benchmarks.fused_steps import METHODS
from kdbench.data.base import Dataset
from kdbench.system.precision import Precision

STEPS = 18


def measure(rows: Rows, counts: tuple[int, ...], sizes: Sizes, images: int, test: int) -> None:
    """Compare weights, then time epochs."""
    with tempfile.TemporaryDirectory() as folder:
        for row in distances(max(counts), sizes, Path(folder)):
            rows.add(row)
        for count in counts:
            rows.add(epoch(count, sizes, common.dataset(images, test), Path(folder)))


def contestant(
    count: int, fused: Choice, sizes: Sizes, data: Dataset, precision: Precision, folder: Path
) -> Contestant:
    """Set up a cohort with a live teacher."""
    given = data, sizes.batch, folder, sizes.run_images, precision, fused
    bench = Bench(sizes.student, common.teacher(sizes.teacher, data), *given)
    return Contestant(METHODS[:count], bench, "live")


def distances(count: int, sizes: Sizes, folder: Path) -> list[dict[str, Any]]:
    """Return how far each student's weights are apart after the steps, fused and alone."""
    data, found = common.dataset(sizes.batch * STEPS), []
    for fused in ("on", "off"):
        way: Choice = "on" if fused == "on" else "off"
        one = contestant(count, way, sizes, data, "fp32", folder)
        one.epoch()
        one.cohort.each(lambda member: member.check())
        found.append({member.run_id: weights(member.state.student) for member in one.members})
    together, alone = found
    return [
        {"method": name, "apart": ((together[name] - own).norm() / own.norm()).item()}
        for name, own in alone.items()
    ]


def weights(network: torch.nn.Module) -> Tensor:
    """Return all weights and statistics of a network [n], in float64."""
    return torch.cat([value.detach().double().flatten() for value in network.state_dict().values()])


def epoch(count: int, sizes: Sizes, data: Dataset, folder: Path) -> dict[str, Any]:
    """Time an epoch of fused students, and its evaluation."""
    precision: Precision = "bf16" if DEVICE.type == "cuda" else "fp32"
    one = contestant(count, "on", sizes, data, precision, folder)
    one.epoch()
    networks = [network for member in one.members for network in member.scored()]
    task = one.members[0].task
    return {
        "methods": count,
        "epoch_seconds": seconds(one.epoch),
        "evaluation_seconds": seconds(lambda: task.score(networks)),
        "images": len(data.train.labels),
    }


if __name__ == "__main__":
    rows, tiny = asked(__doc__)
    if tiny:
        measure(rows, (2,), TINY, 32, 16)
    else:
        measure(rows, (8, 20), FULL, 50_000, 10_000)
