"""The time of calls on a device, to choose the fastest of several ways."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

ROUNDS = 10  # the median of so many counts


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """Return the median time of a call."""
    found = []
    for _ in range(ROUNDS):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def wait(device: torch.device) -> None:
    """Wait until a device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """Name a device and the libraries that compute on it."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{gpu} torch {torch.__version__} cudnn {torch.backends.cudnn.version()}"
