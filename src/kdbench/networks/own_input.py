"""Networks that take images of another size and normalisation than the data set's.

Images are resized and normalised anew inside the network, on its device, before its first layer: so
a teacher of 224 pixels teaches a student of 32, each on images as it was trained on.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import ConfigError


class OwnInput(NamedTuple):
    """What a network expects of its images; None: as the data set has it."""

    size: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def with_own_input(
    network: nn.Module,
    size: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    in_channels: int,
) -> nn.Module:
    """Return the network, which now says what it expects of its images.

    Args:
        network: takes images [B, C, H, W].
        size: the side of the images that it takes, in pixels.
        mean: of its normalisation, a number for each channel.
        std: of its normalisation.
        in_channels: C.

    Raises:
        ConfigError: a size below 1, or a mean and std that are no normalisation of C channels.
    """
    if size is not None and size < 1:
        raise ConfigError(f"a network's size must be 1 pixel or more, not {size}")
    if (mean is None) != (std is None):
        raise ConfigError("a network's mean and std are one normalisation: set both")
    centre, spread = (None if one is None else tuple(one) for one in (mean, std))
    sizes = {len(one) for one in (centre, spread) if one is not None}
    if sizes - {in_channels} or (spread is not None and min(spread) <= 0):
        raise ConfigError(
            f"a network's mean={mean} and std={std} must be {in_channels} numbers each, one for "
            "each channel, and std above 0"
        )
    own = OwnInput(size, centre, spread)
    if own != OwnInput(None, None, None):
        network.own_input = own  # type: ignore[assignment]  # nn.Module declares a tensor or module
    return network


def adapt_input(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let a network take the data set's images, normalised with `mean` and `std`.

    Its state dict keeps its keys. Resizing is bicubic with Pillow's coefficients (antialiased), as
    timm's transforms of images.
    """
    own: object = getattr(network, "own_input", None)
    if not isinstance(own, OwnInput):
        return
    if own.mean is not None and own.std is not None:
        theirs, wanted = (column(*pair) for pair in ((mean, std), (own.mean, own.std)))
        scale = theirs[1] / wanted[1]
        network.register_buffer("input_scale", scale.float(), persistent=False)
        shift = (theirs[0] - wanted[0]) / wanted[1]
        network.register_buffer("input_shift", shift.float(), persistent=False)
    network.register_forward_pre_hook(_adapt)


def column(mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return mean and std as [2, C, 1, 1] float64."""
    return torch.tensor([list(mean), list(std)], dtype=torch.float64)[:, :, None, None]


def _adapt(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    images, *rest = inputs
    own: object = network.own_input
    assert isinstance(own, OwnInput)
    if own.size is not None and images.shape[-2:] != (own.size, own.size):
        side = own.size, own.size
        images = F.interpolate(images, side, mode="bicubic", align_corners=False, antialias=True)
    if own.mean is not None:
        scale, shift = (network.get_buffer(f"input_{name}") for name in ("scale", "shift"))
        images = images * scale + shift
    return (images, *rest)
