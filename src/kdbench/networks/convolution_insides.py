"""The ways to compute n convolutions of one shape: each has a forward pass and both gradients.

Shapes: images x [n, B, C, H, W], or [B, C, H, W] where all n share them; weights w
[n, O, C / groups, R, S]; gradients g [n, B, O, P, Q] of the output. Whatever has n and B in front
is a view of a tensor [B, n * C, H, W], the form that batch norms and activations of a stack take.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

Pair = tuple[int, int]


class Settings(NamedTuple):
    """The settings of a convolution."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


class Inside(NamedTuple):
    """One way to compute it."""

    forward: Callable[[Tensor, Tensor, Settings], Tensor]  # x, w -> [n, B, O, P, Q]
    by_images: Callable[[Tensor, Tensor, Tensor, Settings], Tensor]  # g, x, w -> as x, one each
    by_weights: Callable[[Tensor, Tensor, Tensor, Settings], Tensor]  # g, x, w -> as w


def wide(x: Tensor) -> Tensor:
    """Return [n, B, C, H, W] as [B, n * C, H, W]."""
    return x.movedim(0, 1).flatten(1, 2)


def narrow(x: Tensor, n: int) -> Tensor:
    """Return [B, n * C, H, W] as [n, B, C, H, W], in the same memory."""
    return x.unflatten(1, (n, -1)).movedim(1, 0)


def plain_gradients(
    g: Tensor, x: Tensor, w: Tensor, settings: Settings, wanted: tuple[bool, bool]
) -> Tensor:
    """Return the wanted gradient of one plain convolution: by its images, or by its weights."""
    stride, padding, dilation = (list(pair) for pair in settings[:3])
    by_images, by_weights, _ = torch.ops.aten.convolution_backward(
        *(g, x, w, None, stride, padding, dilation, False, [0, 0]),
        settings.groups,
        [*wanted, False],
    )
    found: Tensor = by_images if wanted[0] else by_weights
    return found


def plain_by_images(g: Tensor, x: Tensor, w: Tensor, settings: Settings) -> Tensor:
    """Return the gradient of one plain convolution by its images."""
    return plain_gradients(g, x, w, settings, (True, False))


def plain_by_weights(g: Tensor, x: Tensor, w: Tensor, settings: Settings) -> Tensor:
    """Return the gradient of one plain convolution by its weights."""
    return plain_gradients(g, x, w, settings, (False, True))


def as_one(x: Tensor, w: Tensor, settings: Settings) -> tuple[Tensor, Tensor, Settings]:
    """Return the one convolution that n are: grouped, or dense where they share the images."""
    if x.ndim == 4 and settings.groups == 1:
        return x, w.flatten(0, 1), settings
    if x.ndim == 4:
        x = x.expand(len(w), *x.shape)
    groups = len(w) * settings.groups
    return wide(x), w.flatten(0, 1), settings._replace(groups=groups)


def grouped_forward(x: Tensor, w: Tensor, settings: Settings) -> Tensor:
    """As one grouped convolution."""
    images, weights, one = as_one(x, w, settings)
    return narrow(torch.conv2d(images, weights, None, *one), len(w))


def grouped_by_images(g: Tensor, x: Tensor, w: Tensor, settings: Settings) -> Tensor:
    """As the gradient of one grouped convolution."""
    images, weights, one = as_one(x, w, settings)
    found = plain_by_images(wide(g), images, weights, one)
    if found.shape == x.shape:
        return found
    found = narrow(found, len(w))
    return found if x.ndim == 5 else found.sum(dim=0)


def grouped_by_weights(g: Tensor, x: Tensor, w: Tensor, settings: Settings) -> Tensor:
    """As the gradient of one grouped convolution."""
    images, weights, one = as_one(x, w, settings)
    found = plain_by_weights(wide(g), images, weights, one)
    return found.unflatten(0, (len(w), -1))


def images_of(x: Tensor, n: int) -> list[Tensor]:
    """Return the images of each convolution."""
    return list(x.unbind()) if x.ndim == 5 else [x] * n


Call = Callable[[], Tensor]
AllOf = Callable[[Sequence[Call]], list[Tensor]]  # does these calls and returns their results


def in_turn(calls: Sequence[Call]) -> list[Tensor]:
    """Do calls one after the other."""
    return [call() for call in calls]


def called_forward(x: Tensor, w: Tensor, settings: Settings, all_of: AllOf = in_turn) -> Tensor:
    """As n plain convolutions."""
    pairs = zip(images_of(x, len(w)), w, strict=True)
    calls = [partial(torch.conv2d, one, weight, None, *settings) for one, weight in pairs]
    return narrow(torch.cat(all_of(calls), dim=1), len(w))


def called_by_images(
    g: Tensor, x: Tensor, w: Tensor, settings: Settings, all_of: AllOf = in_turn
) -> Tensor:
    """As n gradients of plain convolutions; of shared images, their sum."""
    given = zip(g, images_of(x, len(w)), w, strict=True)
    found = all_of([partial(plain_by_images, *one, settings) for one in given])
    return narrow(torch.cat(found, dim=1), len(w)) if x.ndim == 5 else torch.stack(found).sum(dim=0)


def called_by_weights(
    g: Tensor, x: Tensor, w: Tensor, settings: Settings, all_of: AllOf = in_turn
) -> Tensor:
    """As n gradients of plain convolutions."""
    given = zip(g, images_of(x, len(w)), w, strict=True)
    found = all_of([partial(plain_by_weights, *one, settings) for one in given])
    return torch.cat(found).unflatten(0, (len(w), -1))


def calls(all_of: AllOf) -> Inside:
    """Return the way of n plain convolutions, whose calls are done so."""
    ways = called_forward, called_by_images, called_by_weights
    return Inside(*(partial(way, all_of=all_of) for way in ways))


INSIDES = {
    "grouped": Inside(grouped_forward, grouped_by_images, grouped_by_weights),
    "calls": calls(in_turn),
}
