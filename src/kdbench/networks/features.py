"""The features of timm's and torchvision's networks: where they are, and as maps."""

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

STAGES = 4  # of a network whose library describes more features than these and a stem
TORCHVISION_RESNET = {"stem": "relu"} | {f"stage{i}": f"layer{i}" for i in range(1, STAGES + 1)}


def described(network: nn.Module) -> list[dict[str, Any]]:
    """What timm says of a network's features: the path of each and its channels."""
    info: Any = getattr(network, "feature_info", None)
    entries: Iterable[Any] = getattr(info, "info", info) or ()
    return [entry for entry in entries if isinstance(entry, dict) and entry.get("module")]


def channels_of(network: nn.Module) -> dict[str, int]:
    """Channels by module path, where timm says them."""
    return {one["module"]: one["num_chs"] for one in described(network) if "num_chs" in one}


def known_paths(network: nn.Module) -> dict[str, str]:
    """The paths that are known of a network: timm's `feature_info`, torchvision's ResNets; or none.

    "stem" and "stage1" to "stage4"; of a network of more features, as a transformer of twelve
    blocks, those that end each quarter.
    """
    paths = [one["module"] for one in described(network)]
    if len(paths) == STAGES + 1:
        return {"stem": paths[0]} | {f"stage{i}": paths[i] for i in range(1, STAGES + 1)}
    if len(paths) > STAGES:
        paths = [paths[len(paths) * i // STAGES - 1] for i in range(1, STAGES + 1)]
    if paths:
        return {f"stage{i}": path for i, path in enumerate(paths, start=1)}
    modules = dict(network.named_modules())
    is_resnet = all(path in modules for path in (*TORCHVISION_RESNET.values(), "fc"))
    return dict(TORCHVISION_RESNET) if is_resnet else {}


def prefix_of(network: nn.Module) -> int:
    """Return how many tokens precede those of the grid, as timm counts: class and distillation."""
    return int(getattr(network, "num_prefix_tokens", 0))


def as_map(tap: Tensor, prefix: int, channels: int | None) -> Tensor:
    """A tap as recipes read it.

    Tokens [B, N, D] of a square grid become [B, D, H, W], class and distillation tokens apart, and
    maps [B, H, W, C] become [B, C, H, W].

    Args:
        tap: what a module returns.
        prefix: tokens before those of the grid.
        channels: C where it is known.
    """
    if tap.ndim == 4 and channels not in (None, tap.shape[1]) and channels == tap.shape[3]:
        return tap.permute(0, 3, 1, 2)
    if tap.ndim == 3:
        side = math.isqrt(tap.shape[1] - prefix)
        if side * side == tap.shape[1] - prefix:
            return tap[:, prefix:].transpose(1, 2).unflatten(2, (side, side))
    return tap
