"""A student as its training steps call it: compiled on a GPU, where its run is long enough to pay.

Compiling fuses batch norms, activations, additions and casts, on which small networks spend most of
a step, into few kernels. Evaluation and the last, short batch of an epoch use the eager network,
since each would need a compilation of its own.
"""

import copy
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from kdbench.errors import first_line
from kdbench.system.compiling import compiled
from kdbench.system.precision import arithmetic
from kdbench.system.runtime import Runtime
from kdbench.types import Network, Output

# Compiling pays for runs of this many steps. On an H200 in bf16 it takes about 20 s; a step then
# takes 0.97 ms instead of 1.25 (resnet8x4), 4.3 instead of 5.4 (resnet32x4): h200.json in results/.
WORTH_COMPILING = 50_000
CLOSE = {
    "fp32": 1e-3,
    "tf32": 2e-2,
    "bf16": 1e-1,
    "fp16": 2e-2,
}  # of the largest logit, by precision

Forward = Callable[[nn.Module, Tensor, tuple[str, ...]], tuple[Tensor, tuple[Tensor, ...]]]


class CompiledStudent:
    """A network in training mode, compiled for one batch size.

    The compiled network returns only the taps that are read: for others, gradients of zeros would
    be computed. `in_pieces` is for gradients that are summed while the backward pass runs.
    """

    def __init__(
        self, network: nn.Module, taps: Sequence[str], size: int, in_pieces: bool = False
    ) -> None:
        self.network, self.taps, self.size = network, tuple(taps), size
        self.in_pieces = in_pieces

    def __call__(self, images: Tensor) -> Output:
        """Return the network's output on images [B, C, H, W]."""
        if len(images) != self.size:
            return self.network(images)
        logits, taps = compiled_forward(self.in_pieces)(self.network, images, self.taps)
        return Output(logits, dict(zip(self.taps, taps, strict=True)))


def forward(
    network: nn.Module, images: Tensor, taps: tuple[str, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return a network's logits and these taps; compiled once for all networks of a kind."""
    output: Output = network(images)
    return output.logits, tuple(output.taps[name] for name in taps)


@cache
def compiled_forward(in_pieces: bool) -> Forward:
    """Return `forward`, which compiles itself for every kind of network and shape that it meets."""
    return compiled(forward, in_pieces=in_pieces)


def compiles(runtime: Runtime, steps: int) -> bool:
    """Return whether the steps of a run of this many are compiled: on a GPU, where it pays."""
    wanted = runtime.compile == "on" or (runtime.compile == "auto" and steps >= WORTH_COMPILING)
    return runtime.device.type == "cuda" and wanted


def for_training(
    network: nn.Module,
    taps: Sequence[str],
    images: torch.Size,
    precision: str,
    runtime: Runtime,
    steps: int,
    report: Callable[[str], None],
) -> Network:
    """Prepare the student for its training steps.

    Args:
        network: the student on the run's device, at the run's precision; it is not changed.
        taps: the features that the method reads.
        images: the shape [B, C, H, W] of a full batch.
        precision: the run's precision.
        runtime: with compile=off, and on a CPU, the network is called as it is.
        steps: the steps of the whole run, so that the choice is the same after a resume.
        report: takes one message where compiling fails.
    """
    if not compiles(runtime, steps):
        return network
    try:
        with torch.random.fork_rng([runtime.device]), arithmetic(precision):
            try_out(network, taps, images, CLOSE[precision], runtime)
    except Exception as error:  # the compiler and its tools may raise anything
        report(f"the student is not compiled ({first_line(error)}): it runs as it is")
        return network
    return CompiledStudent(network, taps, images[0], runtime.overlaps)


def try_out(
    network: nn.Module, taps: Sequence[str], images: torch.Size, close: float, runtime: Runtime
) -> None:
    """Compile a copy of the network, forward and backward.

    Raises:
        ValueError: the compiled logits differ from the eager ones.
    """
    generator = torch.Generator(runtime.device).manual_seed(0)
    sample = torch.randn(images, generator=generator, device=runtime.device)
    sample = sample.to(memory_format=runtime.memory_format)
    eager, other = copy.deepcopy(network).train(), copy.deepcopy(network).train()
    expected = eager(sample).logits.detach()
    output = CompiledStudent(other, taps, len(sample), runtime.overlaps)(sample)
    torch.stack([part.sum() for part in (output.logits, *output.taps.values())]).sum().backward()
    worst = (output.logits.detach() - expected).abs().max() / expected.abs().max()
    if not bool(worst <= close):
        raise ValueError(f"the compiled logits are off by {worst.item():.1e}")
