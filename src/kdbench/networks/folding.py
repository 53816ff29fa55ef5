"""Batch norms of a frozen network, folded into the convolutions before them."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from kdbench.types import Output

TOLERANCE = 1e-6  # relative to a tap's maximum, in float64; a wrong fold is off by about 1


class Pair(NamedTuple):
    """A convolution, and the path of the batch norm that read its output."""

    convolution: nn.Conv2d
    norm: str


def fold_batch_norms(network: nn.Module, images: Tensor) -> tuple[nn.Module, int]:
    """Return a copy without the batch norms that can be folded, and their number.

    A frozen BN is an affine map of each channel, so that a convolution whose output nothing else
    reads can absorb it: w' = w g / sqrt(v + eps), b' = (b - m) g / sqrt(v + eps) + beta. What
    reads a convolution is not written in the network, so foldings are tried, in float64 on
    `images` [B, C, H, W]; one that changes the logits or any tap stays. A WRN's stem does: the
    first shortcut and a tap read it too.

    The network must be in eval mode.
    """
    folded = copy.deepcopy(network).double()
    sample = images.double()
    with torch.no_grad():
        pairs = _find_pairs(folded, sample)
        count = _fold(folded, pairs, sample, folded(sample)) if pairs else 0
    if count == 0:
        return network, 0
    parameter = next(network.parameters())
    return folded.to(parameter.dtype).requires_grad_(False), count


def _find_pairs(network: nn.Module, images: Tensor) -> list[Pair]:
    """Find each convolution and batch norm that run once, the latter on the former's output."""
    made: list[tuple[Tensor, nn.Conv2d]] = []
    read: list[tuple[Tensor, str]] = []
    handles = []
    for path, module in network.named_modules():
        if type(module) is nn.Conv2d:
            handles.append(
                module.register_forward_hook(
                    lambda conv, _, output: made.append((output, conv)), prepend=True
                )
            )
        elif type(module) is nn.BatchNorm2d and module.track_running_stats and module.affine:
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, inputs, path=path: read.append((inputs[0], path))
                )
            )
    network(images)
    for handle in handles:
        handle.remove()
    # `made` keeps the tensors alive, so that an object's identity identifies its maker.
    makers = {id(output): conv for output, conv in made}
    pairs = [Pair(makers[id(tensor)], path) for tensor, path in read if id(tensor) in makers]
    convolutions = [conv for _, conv in made]
    norms = [path for _, path in read]
    return [
        pair
        for pair in pairs
        if convolutions.count(pair.convolution) == 1 and norms.count(pair.norm) == 1
    ]


def _fold(network: nn.Module, pairs: list[Pair], images: Tensor, expected: Output) -> int:
    """Fold all pairs; where that changes an output, fold each half separately.

    Returns:
        The number of folded pairs.
    """
    undo = [_merge(network, pair) for pair in pairs]
    if _same(network(images), expected):
        return len(pairs)
    for restore in undo:
        restore()
    if len(pairs) == 1:
        return 0
    middle = len(pairs) // 2
    halves = pairs[:middle], pairs[middle:]
    return sum(_fold(network, half, images, expected) for half in halves)


def _merge(network: nn.Module, pair: Pair) -> Callable[[], None]:
    """Fold one pair, and return a function that undoes it."""
    owner_path, _, name = pair.norm.rpartition(".")
    owner, conv = network.get_submodule(owner_path), pair.convolution
    norm, weight, bias = getattr(owner, name), conv.weight, conv.bias
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    conv.weight, conv.bias = fuse_conv_bn_weights(weight, bias, *statistics)
    placeholder = nn.Identity()
    placeholder._forward_hooks.update(norm._forward_hooks)  # a foreign network's tap may be here
    setattr(owner, name, placeholder)

    def restore() -> None:
        conv.weight, conv.bias = weight, bias
        setattr(owner, name, norm)

    return restore


def _same(found: Output, expected: Output) -> bool:
    pairs = [(found.logits, expected.logits)]
    pairs += [(found.taps[name], tap) for name, tap in expected.taps.items()]
    return all(
        bool((one - other).abs().max() <= TOLERANCE * other.abs().max().clamp(min=1.0))
        for one, other in pairs
    )
