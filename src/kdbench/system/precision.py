"""The precision of forward passes; a setting of the recipe, because it changes results."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from kdbench.types import Output

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
TablePrecision = Literal["fp32", "fp16"]

TABLE_DTYPES: dict[str, str] = {"fp32": "float32", "fp16": "float16"}  # NumPy's names


def allow_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 in float32 convolutions and matrix products on a GPU.

    The setting is global to the process and has no effect on the CPU. PyTorch starts with TF32
    allowed in convolutions alone; a run starts with neither, and its passes use `arithmetic`.
    """
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Compute the enclosed forward or backward pass at that `Precision`.

    TF32 is a switch of the process; its previous state is restored.
    """
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    allow_tf32(precision == "tf32")
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


def has_bf16_units() -> bool:
    """Return whether this processor has arithmetic for bf16 of its own."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def notices(precision: str, device: torch.device) -> list[str]:
    """Return a line where bf16 has no arithmetic of its own on the processor, and is emulated."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    if precision != "bf16" or device.type != "cpu" or not x86 or has_bf16_units():
        return []
    return [
        "schedule.precision=bf16 is slower than fp32 on this processor, which has neither "
        "AVX512_BF16 nor AMX"
    ]


def advice(precision: str, device: torch.device) -> list[str]:
    """Return a line on the time that bf16 would save, where a run computes in fp32 on a processor.

    Source of the ratio: a KD step with a live teacher, results/benchmarks/quick_bf16.json.
    """
    if precision != "fp32" or device.type != "cpu" or not has_bf16_units():
        return []
    return [
        "this processor computes in bf16: schedule.precision=bf16, another protocol, took 0.53 of "
        "this time on one with AVX512_BF16"
    ]


HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def mixed(precision: str, device: torch.device) -> torch.autocast:
    """Compute the enclosed forward pass under autocast, if the `Precision` has half the bits."""
    half = HALF.get(precision, torch.bfloat16)
    return torch.autocast(device.type, half, enabled=precision in HALF)


class InHalf(nn.Module):
    """A network whose forward pass runs under autocast; its weights and outputs are float32."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype
        self.train(network.training)

    def forward(self, images: Tensor) -> Output:
        """Return the network's logits and taps as float32, in which losses are computed."""
        with torch.autocast(images.device.type, self.dtype):
            output: Output = self.network(images)
        taps = {name: tap.float() for name, tap in output.taps.items()}
        return Output(output.logits.float(), taps)


def at_precision(network: nn.Module, precision: str) -> nn.Module:
    """Return the network as a run of that `Precision` calls it; TF32 is left to `arithmetic`."""
    return InHalf(network, HALF[precision]) if precision in HALF else network
