"""The time of calls on a device."""

import time
from collections.abc import Callable
from typing import Any

import torch


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """Return how long a call takes, to the end of its kernels."""
    wait(device)
    started = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    """Wait until a device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """Name a device and the libraries that compute on it."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{gpu} torch {torch.__version__} cudnn {torch.backends.cudnn.version()}"
