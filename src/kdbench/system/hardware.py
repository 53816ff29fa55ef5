"""Facts about the machine and the libraries, for records."""

import os
import platform
import resource
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kdbench import __version__

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
LIBRARIES = ("torch", "torchvision", "timm", "hydra-core", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries on which results depend."""
    libraries = {name: version(name) for name in LIBRARIES}
    return {"kdbench": __version__, "python": platform.python_version(), **libraries}


def hardware(device: torch.device) -> dict[str, Any]:
    """Return the processor, GPU and threads that compute a run."""
    facts: dict[str, Any] = {
        "device": device.type,
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak, where the system can: a process may train one cohort after another."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            CLEAR_REFS.write_text("5")  # proc(5): the peak becomes what is in memory now


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory since the last reset in MB: of the GPU if used, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if STATUS.is_file():  # Linux's ru_maxrss also counts the process that forked this one
        (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1e3  # kB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3  # bytes there, kB elsewhere


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
