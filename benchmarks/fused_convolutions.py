"""First question on a GPU: how is each convolution of n stacked students computed fastest?

    python -m benchmarks.fused_convolutions FILE [--tiny]

For every layer of resnet8x4 and every pass: the milliseconds of each way that kdbench knows, of one
dense convolution on as many images (the ideal), and how far its numbers are from float64. FILE is
JSON, written anew after every row, so that a run which is stopped leaves what it has.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.common import DEVICE, Rows, asked, replayed, seconds
from kdbench.networks.convolution_choices import ways
from kdbench.networks.convolution_insides import INSIDES, Settings, narrow

PASSES = ("forward", "by_weights", "by_images")
CALLS = 10  # in one turn
TURNS = 5  # the shortest counts: a stall of the machine is no property of a kernel


class Layer(NamedTuple):
    """A convolution of one student."""

    channels: int
    out: int
    window: int
    stride: int
    side: int
    shared: bool = False  # whether all students see the same images


LAYERS = {
    "stem": Layer(3, 32, 3, 1, 32, shared=True),
    "1.conv1": Layer(32, 64, 3, 1, 32),
    "1.conv2": Layer(64, 64, 3, 1, 32),
    "1.down": Layer(32, 64, 1, 1, 32),
    "2.conv1": Layer(64, 128, 3, 2, 32),
    "2.conv2": Layer(128, 128, 3, 1, 16),
    "2.down": Layer(64, 128, 1, 2, 32),
    "3.conv1": Layer(128, 256, 3, 2, 16),
    "3.conv2": Layer(256, 256, 3, 1, 8),
    "3.down": Layer(128, 256, 1, 2, 16),
}


class Case:
    """A layer's images, weights and gradients for n students."""

    def __init__(self, layer: Layer, n: int, batch: int, dtype: torch.dtype) -> None:
        self.n, self.layer, self.batch = n, layer, batch
        count, out = 1 if layer.shared else n, layer.side // layer.stride
        x = drawn(dtype, batch, count * layer.channels, layer.side, layer.side)
        self.x = x if layer.shared else narrow(x, n)
        w = drawn(dtype, n * layer.out, layer.channels, layer.window, layer.window)
        self.w = w.unflatten(0, (n, layer.out))
        self.g = narrow(drawn(dtype, batch, n * layer.out, out, out), n)
        half, square = layer.window // 2, (layer.stride, layer.stride)
        self.settings = Settings(square, (half, half), (1, 1), 1)

    def given(self, name: str) -> tuple[Tensor, ...]:
        """What a pass takes before its settings."""
        return (self.x, self.w) if name == "forward" else (self.g, self.x, self.w)

    def dense(self, name: str) -> Callable[[], Tensor]:
        """The pass of one student on as many images as all have together."""
        layer, dtype, side = self.layer, self.w.dtype, self.layer.side
        x = drawn(dtype, self.n * self.batch, layer.channels, side, side)
        out = side // layer.stride
        g = narrow(drawn(dtype, self.n * self.batch, layer.out, out, out), 1)
        given = (x, self.w[:1]) if name == "forward" else (g, x, self.w[:1])
        return partial(getattr(INSIDES["grouped"], name), *given, self.settings)

    def error(self, name: str, found: Tensor) -> float:
        """How far a result is from that in float64, relative to its norm."""
        exact = (tensor.double() for tensor in self.given(name))
        expected = getattr(INSIDES["grouped"], name)(*exact, self.settings)
        return ((found.double() - expected).norm() / expected.norm()).item()


def drawn(dtype: torch.dtype, *shape: int) -> Tensor:
    """Random numbers in channels_last."""
    return torch.randn(*shape, device=DEVICE).to(dtype).to(memory_format=torch.channels_last)


def measure(rows: Rows, counts: Sequence[int], batch: int, names: Sequence[str]) -> None:
    """Measure every way of every pass of these layers."""
    half = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    for n in counts:
        for name in names:
            layer = LAYERS[name]
            case = Case(layer, n, batch, half)
            for one in PASSES[: 2 if layer.shared else 3]:
                runs = {"dense": case.dense(one)}
                for way, inside in ways(DEVICE.type).items():
                    given = *case.given(one), case.settings
                    runs[way] = partial(getattr(inside, one), *given)
                for way, run in runs.items():
                    row: dict[str, Any] = {"students": n, "layer": name, "pass": one, "way": way}
                    try:
                        found = run()
                        call = replayed(run, CALLS)
                        row["ms"] = 1000 * min(seconds(call) for _ in range(TURNS)) / CALLS
                        row["error"] = None if way == "dense" else case.error(one, found)
                    except Exception as error:  # a way that cannot compute this is a result
                        row["refused"] = f"{type(error).__name__}: {error}"
                    rows.add(row)


if __name__ == "__main__":
    rows, tiny = asked(__doc__)
    if tiny:
        measure(rows, (2,), 2, ("stem", "1.down"))
    else:
        measure(rows, (8, 20), 64, tuple(LAYERS))
