"""What a network costs: parameters, multiply-accumulates, and time on this machine."""

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdbench.analysis.result import Result, Table, fixed
from kdbench.analysis.subjects import Subject
from kdbench.networks.macs import mac_count

SMALL, LARGE = 1, 64  # batches that are timed
WARM, ROUNDS = 3, 20  # passes before and while it is timed


class Cost(NamedTuple):
    """Of one network; times are medians over `ROUNDS` passes in eval mode, fp32."""

    parameters: int
    macs: int  # of convolutions and matrix products, one image
    latency_1_ms: float
    latency_64_ms: float
    images_per_second: float  # in batches of 64


def latency(network: nn.Module, images: Tensor) -> float:
    """Return seconds of a forward pass of images [B, C, H, W]: the median."""
    times = []
    for _ in range(WARM + ROUNDS):
        _wait(images.device)
        start = time.perf_counter()
        with torch.inference_mode():
            network(images)
        _wait(images.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cost(network: nn.Module, images: Tensor) -> Cost:
    """Measure a network in eval mode on `LARGE` images [64, C, H, W] on its device."""
    one, many = latency(network, images[:SMALL]), latency(network, images)
    return Cost(
        sum(parameter.numel() for parameter in network.parameters()),
        mac_count(network, images),
        1000 * one,
        1000 * many,
        len(images) / many,
    )


def measure(subjects: Sequence[Subject]) -> Result:
    """Measure each network: one student of each configuration, and every teacher."""
    found: dict[str, Cost] = {}
    for one in subjects:
        shape = one.dataset.test.images.shape[1:]
        images = torch.randn(LARGE, *shape, generator=torch.Generator().manual_seed(0))
        mine = f"{one.source.network.name}{_adapted(one.network)}"
        for name, network in {mine: one.network, **one.teachers}.items():
            if name not in found:
                found[name] = cost(network, images.to(one.device))
    rows = [
        [name, f"{c.parameters:,}", fixed(c.macs / 1e6), fixed(c.latency_1_ms, 3),
         fixed(c.latency_64_ms, 2), f"{c.images_per_second:,.0f}"]
        for name, c in found.items()
    ]  # fmt: skip
    table = Table(
        f"Of each network in eval mode, fp32; medians over {ROUNDS} passes on this machine "
        f"({subjects[0].device.type}, {torch.get_num_threads()} threads). Parameters are "
        "without buffers; MACs are of convolutions and matrix products on one image.",
        ["network", "parameters", "MACs, M", "ms, batch 1", "ms, batch 64", "images/s"],
        rows,
    )
    return Result(dict(found), [table], [])


def _adapted(network: nn.Module) -> str:
    """Return a suffix for a student to which a method has given another head."""
    return " with a reused head" if type(network).__name__ == "ReusedHead" else ""
