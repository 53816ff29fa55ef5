"""A teacher as the run calls it: folded, at the run's precision, compiled where that pays.

All outputs of a teacher, live or cached, are computed here, so that they agree bit for bit.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import first_line
from kdbench.networks.folding import fold_batch_norms
from kdbench.networks.macs import mac_count
from kdbench.system.precision import arithmetic, at_precision
from kdbench.system.private import keep_compiled_code
from kdbench.system.runtime import Runtime
from kdbench.types import Output

SAMPLE = 2  # images on which folded batch norms are checked
CHUNK = 64  # the only batch size for which a network is compiled
# Compiling pays on a CPU from this many multiply-accumulates. On one thread of an AVX2 EPYC,
# compiling takes 4 to 10 s (up to a minute on a busy machine) and saves 1.3 ms of 24 ms an image of
# resnet32x4 (1.1e9), 0.07 ms of 0.74 ms of resnet14 (2.7e7): 2 to 4 minutes at 1e14.
WORTH_COMPILING = 1e14
CLOSE = 1e-3  # relative to the largest logit: compiled and eager outputs differ by rounding


class FrozenTeacher:
    """A frozen network with the facts its outputs depend on; it is called like the network.

    A compiled network sees batches of `CHUNK` images only: longer batches are split and short ones
    padded with zeros, so that an image's output does not depend on its batch.
    """

    def __init__(
        self, network: Callable[[Tensor], Output], facts: dict[str, Any], chunk: int | None = None
    ) -> None:
        self.network, self.facts, self.chunk = network, facts, chunk
        self._infinite: Tensor | None = None  # [] bool on the device

    def __call__(self, images: Tensor) -> Output:
        """Return the network's output on images [B, C, H, W]."""
        with arithmetic(self.facts["precision"]):
            if self.chunk is None:
                output = self.network(images)
            else:
                output = in_chunks(self.network, images, self.chunk)
        self.watch(output.logits)
        return output

    def watch(self, logits: Tensor) -> None:
        """Note whether all logits were finite, without waiting for the device."""
        if self._infinite is None or self._infinite.device != logits.device:
            self._infinite = torch.zeros((), dtype=torch.bool, device=logits.device)
        self._infinite |= ~logits.isfinite().all()

    def was_infinite(self) -> bool:
        """Return whether any logit so far was not finite."""
        return self._infinite is not None and bool(self._infinite.item())


def in_chunks(network: Callable[[Tensor], Output], images: Tensor, size: int) -> Output:
    """Return a network's output on images [B, C, H, W], computed in batches of exactly `size`."""
    count = len(images)
    missing = -count % size
    if missing:
        images = F.pad(images, (0, 0) * 3 + (0, missing))  # keeps channels_last, as cat would not
    outputs = [network(part) for part in images.split(size)]
    taps = {
        name: torch.cat([output.taps[name] for output in outputs])[:count]
        for name in outputs[0].taps
    }
    return Output(torch.cat([output.logits for output in outputs])[:count], taps)


def freeze(
    network: nn.Module,
    sample: Tensor,
    precision: str,
    runtime: Runtime,
    images: int,
    report: Callable[[str], None],
) -> FrozenTeacher:
    """Prepare a teacher for its forward passes.

    Args:
        network: the teacher in eval mode on the run's device; it is not changed.
        sample: some training images [B, C, H, W] on the device, on which folding is checked.
        precision: the run's precision.
        runtime: with compile=off the network is called as it is.
        images: teacher forwards, in images, that the run would need without a cache. The choice
            made from it is the same alone and in a cohort, before and after a resume, live and
            cached.
        report: takes one message where compiling fails.
    """
    if runtime.compile == "off":
        facts = {"precision": precision, "folded": 0, "compiled": False}
        return FrozenTeacher(at_precision(network, precision), facts)
    with arithmetic(precision):
        return _rewritten(network, sample, precision, runtime, images, report)


def _rewritten(
    network: nn.Module,
    sample: Tensor,
    precision: str,
    runtime: Runtime,
    images: int,
    report: Callable[[str], None],
) -> FrozenTeacher:
    """Fold the teacher, and compile it where that pays; the arguments are those of `freeze`."""
    facts = {"precision": precision, "folded": 0, "compiled": False}
    folded, facts["folded"] = fold_batch_norms(network, sample[:SAMPLE])
    folded.to(memory_format=runtime.memory_format)
    called = at_precision(folded, precision).eval()
    # On a GPU `auto` replays the eager network as a CUDA graph; whether compiling pays there has
    # not been measured.
    auto = runtime.device.type == "cpu" and images * mac_count(folded, sample) >= WORTH_COMPILING
    if runtime.compile == "on" or auto:
        blank = sample.new_zeros(CHUNK, *sample.shape[1:])
        blank[: len(sample[:CHUNK])] = sample[:CHUNK]
        compiled = compile_frozen(called, blank.to(memory_format=runtime.memory_format), report)
        if compiled is not None:
            return FrozenTeacher(compiled, {**facts, "compiled": True}, CHUNK)
    return FrozenTeacher(called, facts)


def compile_frozen(
    network: nn.Module, images: Tensor, report: Callable[[str], None]
) -> Callable[[Tensor], Output] | None:
    """Compile the network for this shape with its weights as constants; None where that fails.

    It fails without a C++ compiler, on a network that cannot be traced, and on one whose compiled
    outputs differ from the eager ones or (on the CPU) depend on an image's place in the batch:
    cached and live outputs would then differ. Compiled linear layers do depend on the place, in the
    last bit of every other row, so linear layers stay eager.
    """
    keep_compiled_code()
    from torch._inductor import config as inductor  # slow to import (a second), and seldom used

    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            eager = torch.compiler.disable(module.forward)
            module.forward = eager  # type: ignore[method-assign]  # of this copy alone
    compiled = torch.compile(network, dynamic=False)
    try:
        with torch.no_grad(), inductor.patch(freezing=True):
            found, expected = compiled(images).logits, network(images).logits
            moved = compiled(images.roll(1, 0)).logits.roll(-1, 0)
        worst = (found - expected).abs().max() / expected.abs().max()
        if not bool(worst <= CLOSE):
            raise ValueError(f"the compiled logits are off by {worst.item():.1e}")
        if images.device.type == "cpu" and not torch.equal(moved, found):
            raise ValueError("the compiled logits depend on an image's place in the batch")
    except Exception as error:  # the compiler and its tools may raise anything
        report(f"the teacher is not compiled ({first_line(error)}): it runs as it is")
        return None
    return compiled
