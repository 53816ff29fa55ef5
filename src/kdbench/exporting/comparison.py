"""An exported file beside the network that it was made of, on test images."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kdbench.errors import KdbenchError

IMAGES = 256
BATCHES = (1, 100)  # after which the rest follows: other sizes than any graph was traced with
# Of the largest output: some hundred rounding errors of float32, through tens of layers in which
# another runtime sums in another order.
TOLERANCE = 1e-4


class Comparison(NamedTuple):
    """What a file answers beside what the network does; top-1 in percent on `n` images."""

    n: int
    max_difference: float  # of outputs
    top1: float
    top1_exported: float


def compare(
    network: Callable[[Tensor], Tensor],
    exported: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
) -> tuple[Comparison, float]:
    """Run both on images [n, C, H, W] with labels [n]; returns also the largest output there is.

    Raises:
        KdbenchError: the outputs have other shapes.
    """
    rest = len(images) - sum(BATCHES)
    sizes = [*BATCHES, rest] if rest > 0 else [len(images)]
    with torch.no_grad():
        ours = torch.cat([network(part) for part in images.split(sizes)])
        theirs = torch.cat([exported(part) for part in images.split(sizes)])
    if ours.shape != theirs.shape:
        raise KdbenchError(
            f"the exported file gives {list(theirs.shape)}, the network {list(ours.shape)}: it is "
            "removed; report this with the versions of torch and of the runtime"
        )
    difference = float((ours - theirs).abs().max())
    percents = [
        100 * float((out.argmax(dim=1) == labels).double().mean()) for out in (ours, theirs)
    ]
    return Comparison(len(images), difference, *percents), float(ours.abs().max())


def check_equal(found: Comparison, largest: float) -> None:
    """Refuse a file that answers otherwise than the network.

    Raises:
        KdbenchError: outputs differ by more than `TOLERANCE`, or are not numbers.
    """
    if not found.max_difference <= TOLERANCE * largest:
        raise KdbenchError(
            f"the exported file answers otherwise: outputs differ by {found.max_difference:.3g} "
            f"of {largest:.3g}, its top-1 on {found.n} images is {found.top1_exported:.2f}, the "
            f"network's {found.top1:.2f}; it is removed"
        )
