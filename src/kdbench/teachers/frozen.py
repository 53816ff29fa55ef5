"""A teacher as the run calls it: folded, at the run's precision, compiled where that pays.

All answers of a teacher, live or for its table, come through here, so that they agree bit for bit.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import first_line
from kdbench.networks.folding import fold_batch_norms
from kdbench.system.precision import arithmetic, at_precision
from kdbench.system.private import keep_compiled_code
from kdbench.system.runtime import Runtime
from kdbench.types import Output

SAMPLE = 2  # images that foldings are tried on
CHUNK = 64  # the one batch size that a network is compiled for
# Multiply-accumulates from which compiling pays on a CPU. Measured on one thread of an AVX2 EPYC:
# compiling takes 4 to 10 s (up to a minute on a busy machine) and saves 1.3 ms of 24 ms an image of
# resnet32x4 (1.1e9), 0.07 ms of 0.74 ms of resnet14 (2.7e7): 2 to 4 minutes at 1e14.
WORTH_COMPILING = 1e14
CLOSE = 1e-3  # of the largest logit; compiled numbers differ from eager ones by rounding


class FrozenTeacher:
    """A network and what its numbers depend on; called as the network is.

    A compiled one sees batches of `CHUNK` images only: longer ones are cut, short ones filled up
    with zeros, so that an answer does not depend on the batch it was asked for in.
    """

    def __init__(
        self, network: Callable[[Tensor], Output], facts: dict[str, Any], chunk: int | None = None
    ) -> None:
        self.network, self.facts, self.chunk = network, facts, chunk
        self._infinite: Tensor | None = None  # [] bool on the device

    def __call__(self, images: Tensor) -> Output:
        """[B, C, H, W] -> the network's output."""
        with arithmetic(self.facts["precision"]):
            if self.chunk is None:
                output = self.network(images)
            else:
                output = in_chunks(self.network, images, self.chunk)
        self.watch(output.logits)
        return output

    def watch(self, logits: Tensor) -> None:
        """Remember whether all logits were finite; nothing waits for the device."""
        if self._infinite is None or self._infinite.device != logits.device:
            self._infinite = torch.zeros((), dtype=torch.bool, device=logits.device)
        self._infinite |= ~logits.isfinite().all()

    def was_infinite(self) -> bool:
        """Whether a logit was not finite."""
        return self._infinite is not None and bool(self._infinite.item())


def in_chunks(network: Callable[[Tensor], Output], images: Tensor, size: int) -> Output:
    """A network's output on images [B, C, H, W], computed in batches of exactly `size`."""
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
    """The teacher, ready to be called.

    Args:
        network: in eval mode on the run's device; it stays as it is.
        sample: some training images [B, C, H, W] on the device, to try foldings on.
        precision: the run's.
        runtime: with compile=off the network is called as it is.
        images: how many it would be shown in the whole run without a table. What is decided from
            this is the same alone and in a cohort, before and after a resume, live and tabled.
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
    """The teacher folded, and compiled where that pays; arguments as of `freeze`."""
    facts = {"precision": precision, "folded": 0, "compiled": False}
    folded, facts["folded"] = fold_batch_norms(network, sample[:SAMPLE])
    folded.to(memory_format=runtime.memory_format)
    called = at_precision(folded, precision).eval()
    # On a GPU `auto` replays the eager network as a CUDA graph; compiling there is unmeasured.
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
    """The network compiled for this shape with its weights as constants; None where that fails.

    It fails for want of a C++ compiler, on a network that cannot be traced, and on one whose
    compiled numbers are not the eager ones, or (on the CPU) depend on an image's place in the
    batch: a table's and the live answers would differ. Compiled linear layers are like that, by the
    last bit of every other row; they run as they are.
    """
    keep_compiled_code()
    from torch._inductor import config as inductor  # takes a second to import, and is seldom used

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
    except Exception as error:  # anything that the compiler or its tools may raise
        report(f"the teacher is not compiled ({first_line(error)}): it runs as it is")
        return None
    return compiled


def mac_count(network: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates of convolutions and linear layers on one image of [B, C, H, W]."""
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module.weight, Tensor)
        counts.append(output.numel() * math.prod(module.weight.shape[1:]))

    handles = [
        module.register_forward_hook(count)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        network(images[:1])
    for handle in handles:
        handle.remove()
    return sum(counts)
