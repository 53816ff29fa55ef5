"""Which way each pass of a stacked convolution is computed, by a measurement that is kept on disk.

On a GPU the first call of each shape tries all ways on its own tensors.
"""

import json
import statistics
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.networks.convolution_insides import INSIDES, Inside, Settings
from kdbench.networks.convolution_streams import STREAM_INSIDES
from kdbench.system.files import write_atomically
from kdbench.system.private import user_folder
from kdbench.system.stopwatch import device_name, seconds_of

USUAL = "grouped"  # where nothing is measured: on a processor, and in a recording
TURNS = 10  # of each way
Key = str


@cache
def ways(device_type: str) -> dict[str, Inside]:
    """Return the ways that a kind of device knows, by name; Triton has kernels for GPUs."""
    if device_type != "cuda":
        return INSIDES
    found = {**INSIDES, **STREAM_INSIDES}
    try:
        from kdbench.networks.triton_convolution import TRITON_INSIDES
    except ImportError:  # as on Windows
        return found
    return {**found, **TRITON_INSIDES}


def compute(name: str, tensors: tuple[Tensor, ...], settings: Settings) -> Tensor:
    """Compute a pass of a stacked convolution in the fastest way that is known.

    Args:
        name: a field of `Inside`.
        tensors: what the pass takes before its settings.
        settings: of the convolution.
    """
    device = tensors[0].device
    way = way_for(name, tensors, settings) if measures(device) else USUAL
    found: Tensor = getattr(ways(device.type)[way], name)(*tensors, settings)
    return found


def measures(device: torch.device) -> bool:
    """Return whether ways are compared on a device: not on a processor, where few runs fuse."""
    return device.type == "cuda"


def way_for(name: str, tensors: tuple[Tensor, ...], settings: Settings) -> str:
    """Return the fastest way of a pass, which is measured unless it is known or recorded."""
    device = tensors[0].device
    known, key = choices(device_name(device)), key_of(name, tensors, settings)
    if known.get(key) not in ways(device.type):
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return USUAL
        known[key] = fastest(name, tensors, settings)
        keep(device_name(device), known)
    return known[key]


def fastest(name: str, tensors: tuple[Tensor, ...], settings: Settings) -> str:
    """Time all ways that can compute a pass, and return the name of the fastest."""
    seconds = {}
    for way, inside in ways(tensors[0].device.type).items():
        run = getattr(inside, name)
        with suppress(Exception):  # a library may refuse a shape
            run(*tensors, settings)  # chooses kernels, or compiles them
            call = partial(run, *tensors, settings)
            turns = (seconds_of(call, tensors[0].device) for _ in range(TURNS))
            seconds[way] = statistics.median(turns)
    return min(seconds, key=seconds.__getitem__, default=USUAL)


def key_of(name: str, tensors: tuple[Tensor, ...], settings: Settings) -> Key:
    """Return all that the time of a pass depends on, on one device."""
    shapes = [f"{list(tensor.shape)}{list(tensor.stride())}" for tensor in tensors]
    return " ".join([name, str(tensors[0].dtype), *shapes, str(list(settings))])


@cache
def choices(device: str) -> dict[Key, str]:
    """Return the ways that were chosen on a device, by `key_of`; what is measured joins them."""
    found = read().get(device)
    return found if isinstance(found, dict) else {}


def read() -> dict[str, Any]:
    """Return the choices of all devices; none where their file is missing or damaged."""
    with suppress(OSError, ValueError):
        found = json.loads(kept().read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def keep(device: str, known: dict[Key, str]) -> None:
    """Write the choices of a device beside those of others; without a place, they are lost."""
    with suppress(OSError):
        text = json.dumps({**read(), device: known}, indent=1) + "\n"
        write_atomically(kept(), text.encode())


def kept() -> Path:
    """Return the file of all choices."""
    return user_folder("XDG_CACHE_HOME", ".cache") / "convolutions.json"
