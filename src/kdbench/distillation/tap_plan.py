"""Which modules of a network give which taps, found by running it once on an example."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from kdbench.errors import ConfigError
from kdbench.networks.features import known_paths
from kdbench.networks.forward import as_in_evaluation
from kdbench.networks.hooks import check_paths
from kdbench.types import Output

CLOSE = 1e-4  # between the classifier's input and the average of a map


class TapPlan(NamedTuple):
    """Where a network's taps come from, by their canonical names."""

    outputs: dict[str, str]  # what the module at a path returns
    inputs: dict[str, str]  # what it is given
    aliases: dict[str, str]  # another tap


class Call(NamedTuple):
    """What a module was given, and what it returned, when it last ran."""

    given: Tensor
    returned: Tensor


def plan_taps(
    network: nn.Module, taps: Mapping[str, str] | None, example: Tensor, role: str
) -> TapPlan | None:
    """Where a network's taps come from; None for one of kdbench's, which names them itself.

    Beside those that are named, "pooled" is the input of the layer that gives the logits, "map" the
    tap that it is the average of, and NAME_pre a tap before the activation that it ends with (the
    tap itself, where it ends with none).

    Args:
        network: any classifier; it is left as it was.
        taps: canonical names to module paths; None: those that are known of it.
        example: images [B, C, H, W] that it takes.
        role: what it is called in error lines.

    Raises:
        ConfigError: a path names no module, or the network returns no logits.
    """
    outputs = dict(known_paths(network) if taps is None else taps)
    check_paths(role, outputs, network)
    result, calls = run_watched(network, example, set(outputs.values()))
    if isinstance(result, Output):
        if taps:
            raise ConfigError(f"{role} names its own taps ({', '.join(result.taps)}): leave out "
                              f"its taps, as {next(iter(taps))}")  # fmt: skip
        return None
    inputs, aliases = {}, {}
    for name, path in outputs.items():
        if f"{name}_pre" in outputs or path not in calls or name.endswith(("_pre", "stem")):
            continue
        before = last_activation(network, path, calls)
        if before is None:
            aliases[f"{name}_pre"] = name
        else:
            inputs[f"{name}_pre"] = before
    head = classifier_of(logits_of(result, role), calls)
    if head is not None and "pooled" not in outputs:
        inputs["pooled"] = head
        pooled = calls[head].given.flatten(1)
        found = [name for name, path in outputs.items() if is_average(pooled, calls.get(path))]
        if found and "map" not in outputs:
            aliases["map"] = found[-1]
    return TapPlan(outputs, inputs, aliases)


@torch.no_grad()
def run_watched(
    network: nn.Module, example: Tensor, paths: set[str]
) -> tuple[object, dict[str, Call]]:
    """What a network returns, and the last call of each module at `paths` or without children."""
    given: dict[str, Tensor] = {}
    calls: dict[str, Call] = {}

    def before(path: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            given[path] = inputs[0].clone()  # it may be changed in place

    def after(path: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if path in given and isinstance(output, Tensor):
            calls.pop(path, None)  # in the order of the last calls
            calls[path] = Call(given[path], output.clone())

    hooks = []
    for path, module in network.named_modules():
        if path and (path in paths or not any(True for _ in module.children())):
            hooks.append(module.register_forward_pre_hook(partial(before, path)))
            hooks.append(module.register_forward_hook(partial(after, path)))
    try:
        with as_in_evaluation(network):
            return network(example), calls
    finally:
        for hook in hooks:
            hook.remove()


def last_activation(network: nn.Module, path: str, calls: Mapping[str, Call]) -> str | None:
    """The activation whose output is that of the module at a path; None where it ends otherwise."""
    own = calls[path].returned
    for name, call in reversed(list(calls.items())):
        module = network.get_submodule(name)
        if not name.startswith(f"{path}.") or isinstance(module, nn.Identity | _DropoutNd):
            continue
        if call.returned.shape == own.shape and call.returned.equal(own):
            is_activation = not any(True for _ in module.parameters())
            return name if is_activation and call.given.shape == own.shape else None
    return None


def classifier_of(logits: Tensor, calls: Mapping[str, Call]) -> str | None:
    """The layer that gives the logits [B, K], from one vector an image."""
    for path, call in calls.items():
        is_vector = call.given.ndim >= 2 and call.given.shape[1] == call.given[0].numel()
        is_layer = is_vector and not call.returned.equal(call.given)
        if is_layer and call.returned.flatten(1).equal(logits):
            return path
    return None


def is_average(pooled: Tensor, call: Call | None) -> bool:
    """Whether a vector [B, D] is the average of what a module returned [B, D, H, W]."""
    if call is None or call.returned.ndim != 4 or call.returned.shape[:2] != pooled.shape:
        return False
    return torch.allclose(call.returned.mean((2, 3)), pooled, rtol=CLOSE, atol=CLOSE)


def logits_of(result: object, role: str) -> Tensor:
    """The logits [B, K] in what a network returns.

    Raises:
        ConfigError: there are none.
    """
    if isinstance(result, Mapping):
        result = result.get("logits")
    elif hasattr(result, "logits"):
        result = result.logits
    elif isinstance(result, tuple | list):
        result = next((one for one in result if isinstance(one, Tensor) and one.ndim == 2), None)
    if not isinstance(result, Tensor) or result.ndim != 2:
        found = f"a tensor {list(result.shape)}" if isinstance(result, Tensor) else "none"
        raise ConfigError(
            f"{role} must return logits [B, K], or a tuple, mapping or object with them; there is "
            f"{found}"
        )
    return result
