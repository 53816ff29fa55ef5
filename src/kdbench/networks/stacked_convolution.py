"""A convolution that `torch.vmap` maps over stacked weights in a way of our own choice.

PyTorch maps it to one grouped convolution, whose backward pass in channels_last was slow in cuDNN
of 2022 (pytorch#34977, #70954; RegNets in timm's published training benchmarks). Here each layer
and pass has the fastest of several ways (`kdbench.networks.convolution_choices`).

The operators see whole stacks: the mapped one of one network hands them on.
"""

from typing import Any

import torch
from torch import Tensor

from kdbench.networks.convolution_choices import USUAL, compute
from kdbench.networks.convolution_insides import INSIDES, Settings, narrow, wide


@torch.library.custom_op("kdbench::convolution", mutates_args=())
def convolution(x: Tensor, w: Tensor, settings: list[int]) -> Tensor:
    """Convolve images [B, C, H, W] with the weights [O, C / groups, R, S] of one network."""
    return torch.conv2d(x, w, None, *unpacked(settings))


@torch.library.custom_op("kdbench::stacked_convolution", mutates_args=())
def stacked_convolution(x: Tensor, w: Tensor, settings: list[int]) -> Tensor:
    """Convolve the images of each network, or shared ones, with each network's weights."""
    return laid_out(x, compute("forward", (x, w), unpacked(settings)))


@torch.library.custom_op("kdbench::stacked_convolution_by_images", mutates_args=())
def by_images(g: Tensor, x: Tensor, w: Tensor, settings: list[int]) -> Tensor:
    """Return the gradient by the images."""
    return laid_out(x, compute("by_images", (g, x, w), unpacked(settings)))


@torch.library.custom_op("kdbench::stacked_convolution_by_weights", mutates_args=())
def by_weights(g: Tensor, x: Tensor, w: Tensor, settings: list[int]) -> Tensor:
    """Return the gradient by the weights."""
    found = compute("by_weights", (g, x, w), unpacked(settings))
    return found if found.stride() == w.stride() else torch.empty_like(w).copy_(found)


def laid_out(x: Tensor, found: Tensor) -> Tensor:
    """Return images [n, B, C, H, W], or shared ones, in the memory format of the images `x`.

    The compiler is told of this format, whichever way was chosen.
    """
    given = x if x.ndim == 4 else wide(x)
    last = given.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    if found.ndim == 4:
        return found.contiguous(memory_format=layout)
    return narrow(wide(found).contiguous(memory_format=layout), len(found))


def unpacked(settings: list[int]) -> Settings:
    """Return the settings of a convolution from the seven numbers that an operator takes."""
    a, b, c, d, e, f, groups = settings
    return Settings((a, b), (c, d), (e, f), groups)


# The compiler learns shapes and strides from tensors without content.
convolution.register_fake(lambda x, w, settings: torch.conv2d(x, w, None, *unpacked(settings)))
stacked_convolution.register_fake(
    lambda x, w, settings: laid_out(x, INSIDES[USUAL].forward(x, w, unpacked(settings)))
)
by_images.register_fake(lambda g, x, w, settings: laid_out(x, torch.empty_like(x)))
by_weights.register_fake(lambda g, x, w, settings: torch.empty_like(w))


@convolution.register_vmap
def _(info: Any, dims: tuple[int | None, ...], x: Tensor, w: Tensor, settings: list[int]) -> Any:
    images = x if dims[0] is None else x.movedim(dims[0], 0)
    assert dims[1] is not None, "it is the weights that are stacked"
    return stacked_convolution(images, w.movedim(dims[1], 0), settings), 0


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, ctx.settings = inputs
    ctx.save_for_backward(x, w)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, w = ctx.saved_tensors
    of_images, of_weights, _ = ctx.needs_input_grad
    return (
        by_images(g, x, w, ctx.settings) if of_images else None,
        by_weights(g, x, w, ctx.settings) if of_weights else None,
        None,
    )


stacked_convolution.register_autograd(_backward, setup_context=_keep)
