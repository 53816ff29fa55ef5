"""Stacked convolutions as Triton kernels: implicit matrix products over all networks at once.

The kernels read and write the wide form, in channels_last: image b, pixel, network, channel. Each
program computes one tile of one network, so a network's bits do not depend on their number. They
take half precision, square windows and strides, no dilation and no groups, and sizes that their
tiles divide.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kdbench.networks.convolution_insides import Inside, Settings, narrow


class Tile(NamedTuple):
    """The sizes of a program's matrices, and how many warps compute them in how many stages."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


TILES = {
    "triton_64": Tile(64, 64, 64, 4, 4),
    "triton_128": Tile(128, 64, 64, 4, 4),
    "triton_256": Tile(128, 128, 64, 8, 4),
}
SPLITS = 8  # parts of a gradient by weights, summed afterwards


@triton.jit
def forward_kernel(
    x, w, y, x_pixel, x_network, y_pixel,
    h_in: tl.constexpr, w_in: tl.constexpr, c_in: tl.constexpr,
    h_out: tl.constexpr, w_out: tl.constexpr, c_out: tl.constexpr,
    size: tl.constexpr, stride: tl.constexpr, pad: tl.constexpr,
    bm: tl.constexpr, bn: tl.constexpr, bk: tl.constexpr,
) -> None:  # fmt: skip
    """Compute one tile of the output of one network."""
    tile, network = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns: tl.constexpr = c_out // bn
    m = (tile // columns) * bm + tl.arange(0, bm)
    n = (tile % columns) * bn + tl.arange(0, bn)
    q = m % w_out
    p = (m // w_out) % h_out
    b = m // (w_out * h_out)
    own_x = x + network * x_network
    own_w = w + network * (c_out * size * size * c_in)
    total = tl.zeros((bm, bn), tl.float32)
    blocks: tl.constexpr = c_in // bk
    for i in range(size * size * blocks):
        block = i % blocks
        tap = i // blocks
        h = p * stride - pad + tap // size
        v = q * stride - pad + tap % size
        channel = block * bk + tl.arange(0, bk)
        inside = (h >= 0) & (h < h_in) & (v >= 0) & (v < w_in)
        place = ((b * h_in + h) * w_in + v) * x_pixel
        left = tl.load(own_x + place[:, None] + channel[None, :], mask=inside[:, None], other=0.0)
        right = tl.load(own_w + (n[None, :] * (size * size) + tap) * c_in + channel[:, None])
        total = tl.dot(left, right, total)
    place = m.to(tl.int64)[:, None] * y_pixel + network * c_out + n[None, :]
    tl.store(y + place, total.to(y.dtype.element_ty))


@triton.jit
def by_images_kernel(
    g, w, dx, g_pixel, dx_pixel,
    h_in: tl.constexpr, w_in: tl.constexpr, c_in: tl.constexpr,
    h_out: tl.constexpr, w_out: tl.constexpr, c_out: tl.constexpr,
    size: tl.constexpr, stride: tl.constexpr, pad: tl.constexpr,
    bm: tl.constexpr, bn: tl.constexpr, bk: tl.constexpr,
) -> None:  # fmt: skip
    """Compute one tile of the gradient by the images, of pixels of one parity."""
    tile, network = tl.program_id(0), tl.program_id(1).to(tl.int64)
    # Pixels of one parity share the taps that reach them.
    odd_h = tl.program_id(2) // stride
    odd_v = tl.program_id(2) % stride
    columns: tl.constexpr = c_in // bn
    h_half: tl.constexpr = h_in // stride
    w_half: tl.constexpr = w_in // stride
    m = (tile // columns) * bm + tl.arange(0, bm)
    n = (tile % columns) * bn + tl.arange(0, bn)
    v = (m % w_half) * stride + odd_v
    h = ((m // w_half) % h_half) * stride + odd_h
    b = m // (w_half * h_half)
    own_g = g + network * c_out
    own_w = w + network * (c_out * size * size * c_in)
    total = tl.zeros((bm, bn), tl.float32)
    blocks: tl.constexpr = c_out // bk
    first_row = (odd_h + pad) % stride
    first_column = (odd_v + pad) % stride
    taps_h = (size - first_row + stride - 1) // stride
    taps_v = (size - first_column + stride - 1) // stride  # 0: zeros are written
    for i in range(taps_h * taps_v * blocks):
        block = i % blocks
        tap = i // blocks
        row = first_row + (tap // taps_v) * stride
        column = first_column + (tap % taps_v) * stride
        p = (h + pad - row) // stride
        q = (v + pad - column) // stride
        channel = block * bk + tl.arange(0, bk)
        inside = (h + pad - row >= 0) & (p < h_out) & (v + pad - column >= 0) & (q < w_out)
        place = ((b * h_out + p) * w_out + q) * g_pixel
        left = tl.load(own_g + place[:, None] + channel[None, :], mask=inside[:, None], other=0.0)
        window = channel[:, None] * (size * size) + row * size + column
        right = tl.load(own_w + window * c_in + n[None, :])
        total = tl.dot(left, right, total)
    place = ((b * h_in + h) * w_in + v).to(tl.int64)[:, None] * dx_pixel + network * c_in
    tl.store(dx + place + n[None, :], total.to(dx.dtype.element_ty))


@triton.jit
def by_weights_kernel(
    x, g, dw, x_pixel, x_network, g_pixel, networks, length,
    h_in: tl.constexpr, w_in: tl.constexpr, c_in: tl.constexpr,
    h_out: tl.constexpr, w_out: tl.constexpr, c_out: tl.constexpr,
    size: tl.constexpr, stride: tl.constexpr, pad: tl.constexpr,
    bm: tl.constexpr, bn: tl.constexpr, bk: tl.constexpr,
) -> None:  # fmt: skip
    """Compute one tile of a part of the gradient by the weights, for one tap."""
    tile, network = tl.program_id(0), tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    columns: tl.constexpr = c_in // bn
    lines: tl.constexpr = c_out // bm
    n = (tile % columns) * bn + tl.arange(0, bn)
    o = ((tile // columns) % lines) * bm + tl.arange(0, bm)
    tap = tile // (columns * lines)
    own_x = x + network * x_network
    own_g = g + network * c_out
    total = tl.zeros((bm, bn), tl.float32)
    for i in range(length // bk):
        m = part * length + i * bk + tl.arange(0, bk)
        q = m % w_out
        p = (m // w_out) % h_out
        b = m // (w_out * h_out)
        h = p * stride - pad + tap // size
        v = q * stride - pad + tap % size
        inside = (h >= 0) & (h < h_in) & (v >= 0) & (v < w_in)
        left = tl.load(own_g + m[None, :].to(tl.int64) * g_pixel + o[:, None])
        place = ((b * h_in + h) * w_in + v) * x_pixel
        right = tl.load(own_x + place[:, None] + n[None, :], mask=inside[:, None], other=0.0)
        total = tl.dot(left, right, total)
    window = (part * networks + network) * (c_out * size * size * c_in)
    tl.store(dw + window + (o[:, None] * (size * size) + tap) * c_in + n[None, :], total)


class Shapes(NamedTuple):
    """What the kernels are compiled for."""

    h_in: int
    w_in: int
    c_in: int
    h_out: int
    w_out: int
    c_out: int
    size: int
    stride: int
    pad: int


def shapes_of(x: Tensor, w: Tensor, settings: Settings) -> Shapes:
    """Return the shapes of a convolution.

    Raises:
        ValueError: the kernels do not take it.
    """
    h_in, w_in = x.shape[-2:]
    size, stride, pad = w.shape[-1], settings.stride[0], settings.padding[0]
    square = (
        w.shape[-2] == size
        and settings.stride == (stride, stride)
        and settings.padding == (pad, pad)
        and settings.dilation == (1, 1)
    )
    half = x.dtype in (torch.float16, torch.bfloat16)
    if not square or not half or settings.groups != 1 or h_in % stride or w_in % stride:
        raise ValueError("the Triton kernels do not take this convolution")
    h_out, w_out = ((side + 2 * pad - size) // stride + 1 for side in (h_in, w_in))
    return Shapes(h_in, w_in, w.shape[2], h_out, w_out, w.shape[1], size, stride, pad)


def strides_of(x: Tensor) -> tuple[int, int]:
    """Return the elements from pixel to pixel and from network to network (0: they share it).

    Raises:
        ValueError: it is not in channels_last.
    """
    pixel = x.stride(-1)
    if x.stride(-3) != 1 or x.stride(-2) != pixel * x.shape[-1]:
        raise ValueError("the Triton kernels take channels_last alone")
    return pixel, x.stride(0) if x.ndim == 5 else 0


def divided(whole: int, tile: int) -> int:
    """Return how many tiles a side has.

    Raises:
        ValueError: they do not divide it.
    """
    if whole % tile:
        raise ValueError(f"{tile} does not divide {whole}")
    return whole // tile


def fitting(side: int, largest: int) -> int:
    """Return the largest tile that a side of 16 or more has room for."""
    return min(largest, side)


def kernels(tile: Tile) -> Inside:
    """Return the passes with tiles of this size."""
    options: dict[str, Any] = {"num_warps": tile.warps, "num_stages": tile.stages}

    def forward(x: Tensor, w: Tensor, settings: Settings) -> Tensor:
        shapes, (pixel, network) = shapes_of(x, w, settings), strides_of(x)
        n, batch = len(w), x.shape[-4]
        out = n * shapes.c_out
        y = x.new_empty(batch, out, shapes.h_out, shapes.w_out).to(
            memory_format=torch.channels_last
        )
        bn, bk = fitting(shapes.c_out, tile.n), fitting(shapes.c_in, tile.k)
        rows = divided(batch * shapes.h_out * shapes.w_out, tile.m)
        divided(shapes.c_in, bk)
        grid = rows * divided(shapes.c_out, bn), n
        sizes = *shapes, tile.m, bn, bk
        forward_kernel[grid](x, own_form(w), y, pixel, network, out, *sizes, **options)
        return narrow(y, n)

    def by_images(g: Tensor, x: Tensor, w: Tensor, settings: Settings) -> Tensor:
        if x.ndim == 4:
            raise ValueError("images that all networks share have no gradient here")
        shapes, (pixel, _) = shapes_of(x, w, settings), strides_of(g)
        n, batch = len(w), x.shape[1]
        wide = n * shapes.c_in
        dx = x.new_empty(batch, wide, *x.shape[-2:]).to(memory_format=torch.channels_last)
        bn, bk = fitting(shapes.c_in, tile.n), fitting(shapes.c_out, tile.k)
        rows = divided(batch * shapes.h_in * shapes.w_in // shapes.stride**2, tile.m)
        divided(shapes.c_out, bk)
        grid = rows * divided(shapes.c_in, bn), n, shapes.stride**2
        sizes = *shapes, tile.m, bn, bk
        by_images_kernel[grid](g, own_form(w), dx, pixel, wide, *sizes, **options)
        return narrow(dx, n)

    def by_weights(g: Tensor, x: Tensor, w: Tensor, settings: Settings) -> Tensor:
        shapes, (pixel, network), (g_pixel, _) = (
            shapes_of(x, w, settings),
            strides_of(x),
            strides_of(g),
        )
        n, pixels = len(w), g.shape[1] * shapes.h_out * shapes.w_out
        bm, bn = fitting(shapes.c_out, tile.m), fitting(shapes.c_in, tile.n)
        length = divided(pixels, SPLITS)
        divided(length, tile.k)
        tiles = divided(shapes.c_out, bm) * divided(shapes.c_in, bn) * shapes.size**2
        parts = torch.empty(SPLITS, *own_form(w).shape, dtype=torch.float32, device=w.device)
        given = x, g, parts, pixel, network, g_pixel, n, length
        by_weights_kernel[tiles, n, SPLITS](*given, *shapes, bm, bn, tile.k, **options)
        return parts.sum(dim=0).to(w.dtype).permute(0, 1, 4, 2, 3)

    return Inside(forward, by_images, by_weights)


def own_form(w: Tensor) -> Tensor:
    """Return weights [n, O, C, R, S] as contiguous [n, O, R, S, C]."""
    return w.permute(0, 1, 3, 4, 2).contiguous()


TRITON_INSIDES = {name: kernels(tile) for name, tile in TILES.items()}
