"""Networks of one architecture that run as one.

`torch.vmap` maps the forward pass of one of them over all their weights. Each network remains a
module of its own: its parameters and buffers become rows of stacked tensors, so whoever reads or
changes them, network or stack, sees the same memory.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kdbench.networks.forward import as_in_evaluation
from kdbench.networks.stacked_layers import use_stacked_layers
from kdbench.system.compiling import compiled
from kdbench.types import Output

Tensors = dict[str, Tensor]
# A network's parameters, its buffers, images -> its logits, and the taps that are read.
Forward = Callable[[Tensors, Tensors, Tensor], tuple[Tensor, tuple[Tensor, ...]]]


class Stacked:
    """Networks that run as one in training mode.

    Args:
        networks: of one `architecture`, on one device; their tensors move into the stack.
        taps: names of the features that are read.
    """

    def __init__(self, networks: Sequence[nn.Module], taps: Sequence[str]) -> None:
        self.networks, self.taps = list(networks), tuple(taps)
        # Its weights are never read, so it needs no memory for them.
        self.template = copy.deepcopy(networks[0]).to("meta").train()
        use_stacked_layers(self.template)
        self.parameters = stacks([dict(network.named_parameters()) for network in networks])
        self.buffers = stacks([dict(network.named_buffers()) for network in networks])
        for name, parameter in networks[0].named_parameters():
            self.parameters[name].requires_grad_(parameter.requires_grad)
        mapped = partial(one_forward, self.template, self.taps)
        self.eager: Forward = torch.vmap(mapped, in_dims=(0, 0, None))
        self.compiled: Forward | None = None
        self.size = 0  # of the batches for which it is compiled

    def compile(self, size: int) -> None:
        """Compile the forward pass for batches of `size` images, at its first one."""
        self.compiled = compiled(self.eager, fullgraph=True)
        self.size = size

    def forward(self, buffers: Tensors, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits [n, B, K] and the taps that are read, each [n, ...]; `buffers` move."""
        run = self.compiled if len(images) == self.size else None
        return (run or self.eager)(self.parameters, buffers, images)

    @property
    def trained(self) -> Tensors:
        """The stacked parameters [n, ...] that have gradients, by name."""
        return {name: stack for name, stack in self.parameters.items() if stack.requires_grad}

    def __call__(self, images: Tensor) -> list[Output]:
        """Return each network's output on images [B, C, H, W]; running statistics move."""
        logits, taps = self.forward(self.buffers, images)
        # Indexing would make a gradient of the whole stack for each row.
        rows = zip(*(tap.unbind() for tap in taps), strict=True) if taps else [()] * len(logits)
        return [
            Output(row, dict(zip(self.taps, found, strict=True)))
            for row, found in zip(logits.unbind(), rows, strict=True)
        ]

    def reached_by(self, outputs: Sequence[str], images: Tensor) -> set[str]:
        """Name the parameters on which these outputs depend; "" is the logits."""
        network = copy.deepcopy(self.networks[0])
        with as_in_evaluation(network), torch.enable_grad():
            logits, taps = network(images)
        found = [logits if name == "" else taps[name] for name in outputs]
        total = torch.stack([output.float().sum() for output in found if output.requires_grad])
        params = {n: p for n, p in network.named_parameters() if p.requires_grad}
        grads = torch.autograd.grad(total.sum(), list(params.values()), allow_unused=True)
        return {name for name, grad in zip(params, grads, strict=True) if grad is not None}


def one_forward(
    template: nn.Module,
    taps: tuple[str, ...],
    parameters: Tensors,
    buffers: Tensors,
    images: Tensor,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the logits and taps of the network that has these parameters and buffers."""
    output: Output = functional_call(template, (parameters, buffers), (images,))
    return output.logits, tuple(output.taps[name] for name in taps)


def stacks(named: Sequence[Mapping[str, Tensor]]) -> Tensors:
    """Stack tensors by name, and make each of them a row of its stack."""
    found = {}
    for name, first in named[0].items():
        # A row keeps the strides of its tensor, for example those of channels_last.
        size, strides = (len(named), *first.shape), (first.numel(), *first.stride())
        stack = torch.empty_strided(size, strides, dtype=first.dtype, device=first.device)
        for row, tensors in zip(stack, named, strict=True):
            row.copy_(tensors[name].detach())
            tensors[name].data = row
        found[name] = stack
    return found


def architecture(network: nn.Module) -> tuple[Any, ...]:
    """Return what two networks must have in common to be stacked."""
    parts = (*network.named_parameters(), *network.named_buffers())
    facts = ((name, t.shape, t.stride(), t.dtype, t.requires_grad) for name, t in parts)
    return type(network), repr(network), *facts
