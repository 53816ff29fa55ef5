"""Forward hooks that keep what modules are given and return, by the names of taps."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdbench.errors import ConfigError, nearest

Captured = dict[str, Any]  # of a forward pass, by tap


def check_paths(owner: str, paths: Mapping[str, str], network: nn.Module) -> None:
    """Refuse a tap of a module that a network has not.

    Args:
        owner: the network, for the error line.
        paths: module paths by tap.
        network: where they are looked for.

    Raises:
        ConfigError: names the tap and the nearest path.
    """
    known = {path for path, _ in network.named_modules() if path}
    for name, path in paths.items():
        if path not in known:
            as_deep = [one for one in known if one.count(".") <= path.count(".")]
            hint = nearest(path, as_deep)
            raise ConfigError(f"{owner} has no module '{path}' for {name}: {hint}")


def keep_output(
    captured: Captured, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any
) -> None:
    """Keep what a module returns; a forward hook, but for the first two arguments."""
    captured[name] = output


def keep_copy(
    captured: Captured, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any
) -> None:
    """Keep a copy of it: what follows may work in place, as a += or a ReLU(inplace=True) does."""
    captured[name] = output.clone() if isinstance(output, Tensor) else output


def keep_input(captured: Captured, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Keep a copy of what a module is given; a forward pre-hook, but for the first two."""
    captured[name] = inputs[0].clone()


def keep_pooled(captured: Captured, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Keep the input of a classifier as "pooled" [B, D]: [B, D, 1, 1] where it is a convolution."""
    captured["pooled"] = inputs[0].flatten(1)


def tap_of(name: str, captured: Mapping[str, Any]) -> Tensor:
    """Return what was kept for a tap.

    Raises:
        ConfigError: its module did not run, or does not return a tensor.
    """
    if name not in captured:
        raise ConfigError(f"tap '{name}': the network does not run its module")
    tap = captured[name]
    if not isinstance(tap, Tensor):
        kind = type(tap).__name__
        raise ConfigError(f"tap '{name}': its module returns a {kind}, a tap must be a tensor")
    return tap
