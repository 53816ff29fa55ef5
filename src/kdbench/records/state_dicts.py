"""The state dicts in what a weight file holds, and which of them fit a network.

Code bases keep weights under keys of their own (`model`, `state_dict_ema` ...) and under prefixes
(`module.`, `_orig_mod.`, `student.` ...). A set of weights is named by the keys and the prefix that
lead to it, joined by dots.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

# Parts of a key that wrappers of a network add: DataParallel, torch.compile, and activation
# checkpointing and sharding, which wrap inner modules too.
WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
WHOLE = "."  # the name of a set that lies at the top, under no prefix
DEEPEST = 5  # levels of containers that are searched
MOST = 10_000  # containers that are looked into; an honest file has some hundreds
# A tensor that the network has not is a weight if its name holds one of these, or if it has two
# axes or more; the others are counters, indices and constants, such as thop's `total_ops`.
LEARNED = ("weight", "bias", "running_", "gamma", "beta", "token", "embed", "kernel")
CONSTANT = ("attn_mask", "relative_coords_table")  # Swin's, which have two axes
NETWORKS = ("teacher", "student", "model", "net", "ema", "backbone")  # in names of whole networks


@dataclass
class StateDict:
    """Weights under one name, with its prefix taken away."""

    name: str
    tensors: dict[str, Tensor]
    beside: list[str] = field(default_factory=list)  # in the same container, not under the prefix

    def surplus(self, own: Mapping[str, Tensor]) -> list[str]:
        """Tensors that a network has not."""
        return [key for key in self.tensors if key not in own]

    def misfit(self, own: Mapping[str, Tensor]) -> str | None:
        """Why these are not the weights of a network with the state dict `own`; None: they are.

        Other shapes are another question: see `other_shapes`.
        """
        lacking = [k for k in own if k not in self.tensors and not _is_counter(k)]
        if lacking:
            return f"it lacks {lacking[0]}"
        odd = [key for key in self.surplus(own) if is_weight(key, self.tensors[key])]
        return f"it has {odd[0]}" if odd else None

    def other_shapes(self, own: Mapping[str, Tensor]) -> list[str]:
        """The keys of both whose shapes differ."""
        both = [key for key in own if key in self.tensors]
        return [key for key in both if self.tensors[key].shape != own[key].shape]

    def head(self, own: Mapping[str, Tensor]) -> tuple[int, int] | None:
        """The numbers of classes, here and of the network, where nothing else differs."""
        odd = self.other_shapes(own)
        if any(self.tensors[key].shape[1:] != own[key].shape[1:] for key in odd):
            return None
        counts = {(len(self.tensors[key]), len(own[key])) for key in odd}
        return counts.pop() if len(counts) == 1 else None


def is_weight(key: str, tensor: Tensor) -> bool:
    """Whether a tensor that a network has not is a weight, so that the network is another."""
    leaf = key.rpartition(".")[2]
    if _is_counter(key) or not tensor.is_floating_point() or leaf in CONSTANT:
        return False
    return any(word in leaf for word in LEARNED) or sum(size > 1 for size in tensor.shape) > 1


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def state_dicts(content: Any) -> list[StateDict]:
    """Every mapping with tensors in a file's content, as it is."""
    return [
        StateDict(name, {str(key): t for key, t in node.items() if isinstance(t, Tensor)})
        for name, node in _mappings(content)
        if any(isinstance(value, Tensor) for value in node.values())
    ]


def candidates(content: Any, own: Mapping[str, Tensor]) -> list[StateDict]:
    """The sets of weights in a file that may be of a network, those with most of its keys first.

    Args:
        content: plain data.
        own: the network's state dict.
    """
    found: list[tuple[int, StateDict]] = []
    for container in state_dicts(content):
        container.tensors = without_wrappers(container.tensors, own)
        hits = Counter(prefix for key in container.tensors for prefix in _prefixes(key, own))
        found += [(hits[prefix], _under(container, prefix, hits, own)) for prefix in hits or [""]]
    return [one for _, one in sorted(found, key=lambda pair: -pair[0])]


def without_wrappers(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by names from which the parts of `WRAPPERS` are taken, unless two become one."""
    kept = {part for key in own for part in key.split(".")}
    dropped = [part for part in WRAPPERS if part not in kept]
    named = {
        ".".join(part for part in key.split(".") if part not in dropped): tensor
        for key, tensor in tensors.items()
    }
    return named if len(named) == len(tensors) else dict(tensors)


def _mappings(content: Any) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Mappings by the keys that lead to them; lists are mappings by number."""
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
    """What a key begins with before a key of the network's; "" where it is one."""
    parts = key.split(".")
    for i in range(len(parts)):
        if ".".join(parts[i:]) in own:
            yield ".".join(parts[:i])


def _under(
    container: StateDict, prefix: str, hits: Mapping[str, int], own: Mapping[str, Tensor]
) -> StateDict:
    """A container's part under a prefix, without whole networks under longer ones."""
    needed = sum(not _is_counter(key) for key in own)
    start = f"{prefix}." if prefix else ""
    inner = tuple(
        f"{other}."
        for other, count in hits.items()
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
    """Return whether a tensor beside a set of weights is, by its name, of another whole network."""
    return any(word in part.lower() for part in key.split(".")[:-1] for word in NETWORKS)


def named(found: list[StateDict], key: str) -> list[StateDict]:
    """The sets that a user's `checkpoint_key` may mean: of that name, or that end or part of it."""
    wanted = key.strip(".") or WHOLE
    for means in (
        lambda name: name == wanted,
        lambda name: name.endswith(f".{wanted}"),
        lambda name: f".{wanted}." in f".{name}.",
    ):
        if meant := [one for one in found if means(one.name)]:
            return meant
    return []
