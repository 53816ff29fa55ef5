"""The state dicts in a weight file's content, and whether they fit a network.

Code bases keep weights under keys of their own (`model`, `state_dict_ema` ...) and under prefixes
(`module.`, `_orig_mod.`, `student.` ...). A set of weights is named by the keys and the prefix that
lead to it, joined by dots.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

# Wrappers of a network add these parts to its keys: DataParallel, torch.compile, and activation
# checkpointing and sharding, which wrap inner modules too.
WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
WHOLE = "."  # the name of a set at the top, without a prefix
DEEPEST = 5  # levels of containers that are searched
MOST = 10_000  # containers that are searched; a real file has some hundreds
# A tensor that the network lacks is a weight if its name holds one of these, or if it has two axes
# or more; the others are counters, indices and constants, such as thop's `total_ops`.
LEARNED = ("weight", "bias", "running_", "gamma", "beta", "token", "embed", "kernel")
CONSTANT = ("attn_mask", "relative_coords_table")  # Swin's, which have two axes
NETWORKS = ("teacher", "student", "model", "net", "ema", "backbone")  # in names of whole networks


@dataclass
class StateDict:
    """Weights under one name, without its prefix."""

    name: str
    tensors: dict[str, Tensor]
    beside: list[str] = field(
        default_factory=list
    )  # tensors in the same container, without the prefix

    def surplus(self, own: Mapping[str, Tensor]) -> list[str]:
        """Return the names of tensors that the network lacks."""
        return [key for key in self.tensors if key not in own]

    def misfit(self, own: Mapping[str, Tensor]) -> str | None:
        """Say why these are not the weights of a network with state dict `own`; None if they are.

        Shapes are not compared: see `other_shapes`.
        """
        lacking = [k for k in own if k not in self.tensors and not _is_counter(k)]
        if lacking:
            return f"it lacks {lacking[0]}"
        odd = [key for key in self.surplus(own) if is_weight(key, self.tensors[key])]
        return f"it has {odd[0]}" if odd else None

    def other_shapes(self, own: Mapping[str, Tensor]) -> list[str]:
        """Return the common keys whose shapes differ."""
        both = [key for key in own if key in self.tensors]
        return [key for key in both if self.tensors[key].shape != own[key].shape]

    def head(self, own: Mapping[str, Tensor]) -> tuple[int, int] | None:
        """Return the numbers of classes, here and of the network, where nothing else differs."""
        odd = self.other_shapes(own)
        if any(self.tensors[key].shape[1:] != own[key].shape[1:] for key in odd):
            return None
        counts = {(len(self.tensors[key]), len(own[key])) for key in odd}
        return counts.pop() if len(counts) == 1 else None


def is_weight(key: str, tensor: Tensor) -> bool:
    """Return whether a tensor that a network lacks is a weight, so that the network is another."""
    leaf = key.rpartition(".")[2]
    if _is_counter(key) or not tensor.is_floating_point() or leaf in CONSTANT:
        return False
    return any(word in leaf for word in LEARNED) or sum(size > 1 for size in tensor.shape) > 1


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def state_dicts(content: Any) -> list[StateDict]:
    """Return every mapping with tensors in a file's content, unchanged."""
    return [
        StateDict(name, {str(key): t for key, t in node.items() if isinstance(t, Tensor)})
        for name, node in _mappings(content)
        if any(isinstance(value, Tensor) for value in node.values())
    ]


def candidates(content: Any, own: Mapping[str, Tensor]) -> list[StateDict]:
    """Return the sets of weights in a file that may be a network's, most common keys first.

    Args:
        content: the file's plain data.
        own: the network's state dict.
    """
    found: list[tuple[int, StateDict]] = []
    for container in state_dicts(content):
        container.tensors = without_wrappers(container.tensors, own)
        matches = Counter(prefix for key in container.tensors for prefix in _prefixes(key, own))
        found += [
            (matches[prefix], _under(container, prefix, matches, own)) for prefix in matches or [""]
        ]
    return [one for _, one in sorted(found, key=lambda pair: -pair[0])]


def without_wrappers(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the parts of `WRAPPERS` from tensors' names, unless two names become one."""
    kept = {part for key in own for part in key.split(".")}
    dropped = [part for part in WRAPPERS if part not in kept]
    named = {
        ".".join(part for part in key.split(".") if part not in dropped): tensor
        for key, tensor in tensors.items()
    }
    return named if len(named) == len(tensors) else dict(tensors)


def _mappings(content: Any) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield mappings with the keys that lead to them; lists are mappings by number."""
    level, seen = [("", content)], 0
    for _ in range(DEEPEST):
        below: list[tuple[str, Any]] = []
        for name, node in level:
            if isinstance(node, list | tuple):
                node = dict(enumerate(node))
            if not isinstance(node, Mapping) or (seen := seen + 1) > MOST:
                continue
            yield name, node
            below += [
                (_joined(name, str(key)), value)
                for key, value in node.items()
                if isinstance(value, Mapping | list | tuple)
            ]
        level = below


def _prefixes(key: str, own: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield a key's prefixes before a key of the network's; "" where it is one itself."""
    parts = key.split(".")
    for i in range(len(parts)):
        if ".".join(parts[i:]) in own:
            yield ".".join(parts[:i])


def _under(
    container: StateDict, prefix: str, matches: Mapping[str, int], own: Mapping[str, Tensor]
) -> StateDict:
    """Return a container's part under a prefix, without whole networks under longer ones."""
    needed = sum(not _is_counter(key) for key in own)
    start = f"{prefix}." if prefix else ""
    inner = tuple(
        f"{other}."
        for other, count in matches.items()
        if other != prefix and count >= needed and other.startswith(start)
    )
    tensors, beside = {}, []
    for key, tensor in container.tensors.items():
        if key.startswith(start) and not key.startswith(inner):
            tensors[key.removeprefix(start)] = tensor
        elif is_weight(key, tensor):
            beside.append(key)
    return StateDict(_joined(container.name, prefix) or WHOLE, tensors, beside)


def _joined(first: str, second: str) -> str:
    return ".".join(part for part in (first, second) if part)


def is_of_a_network(key: str) -> bool:
    """Return whether a tensor beside a set of weights is another whole network's, by its name."""
    return any(word in part.lower() for part in key.split(".")[:-1] for word in NETWORKS)


def named(found: list[StateDict], key: str) -> list[StateDict]:
    """Return the sets that `checkpoint_key` may mean: of that name, or with it as end or part."""
    wanted = key.strip(".") or WHOLE
    for means in (
        lambda name: name == wanted,
        lambda name: name.endswith(f".{wanted}"),
        lambda name: f".{wanted}." in f".{name}.",
    ):
        if meant := [one for one in found if means(one.name)]:
            return meant
    return []
