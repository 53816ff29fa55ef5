"""What numbers a network is computed in; a setting of the recipe, because it changes results."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from kdbench.types import Output

Precision = Literal["fp32", "tf32", "bf16"]
TablePrecision = Literal["fp32", "fp16"]

TABLE_DTYPES: dict[str, str] = {"fp32": "float32", "fp16": "float16"}  # NumPy's names


def allow_tf32(allowed: bool) -> None:
    """Let float32 convolutions and products on a GPU round their factors to TF32, or not.

    Global to the process, nothing on the CPU. PyTorch starts with convolutions allowed, products
    not; a run starts with neither, and its passes are computed in `arithmetic`.
    """
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """The arithmetic of a forward or backward pass of that `Precision`; around every one of them.

    TF32 is a switch of the process, which is left as it was.
    """
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    allow_tf32(precision == "tf32")
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


class InBfloat16(nn.Module):
    """A network whose forward pass runs under autocast; its weights and outputs are float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.train(network.training)

    def forward(self, images: Tensor) -> Output:
        """Logits and taps as the network's, cast to float32: losses are computed in that."""
        with torch.autocast(images.device.type, torch.bfloat16):
            output: Output = self.network(images)
        taps = {name: tap.float() for name, tap in output.taps.items()}
        return Output(output.logits.float(), taps)


def at_precision(network: nn.Module, precision: str) -> nn.Module:
    """The network as a run of that `Precision` calls it; for TF32 it is called in `arithmetic`."""
    return InBfloat16(network) if precision == "bf16" else network
