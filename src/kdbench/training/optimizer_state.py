"""The state of any optimizer, as tensors and plain numbers by paths, and back.

Paths are PARAMETER/NAME, such as "0/momentum_buffer" or "0/step"; what changes in a group of
parameters is "group NUMBER/NAME".
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Plain = dict[str, int | float | bool | str | None]  # what is no tensor, by its path
GROUP = "group "


def state_of(
    optimizer: torch.optim.Optimizer, first: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Tensor], Plain]:
    """Return all on which the next step depends, but for learning rates.

    Each number of its state stands by itself or in a mapping, as in all of timm's that
    `check_timm_optimizer` lets through.

    Args:
        optimizer: any of PyTorch's kind.
        first: its groups as they were made; of these, what has changed is state.
    """
    whole = optimizer.state_dict()
    groups = {
        f"{GROUP}{number}": changed(group, made)
        for number, (group, made) in enumerate(zip(whole["param_groups"], first, strict=True))
    }
    leaves = dict(leaves_of({**whole["state"], **groups}))
    tensors = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, Tensor)}
    return tensors, {path: leaf for path, leaf in leaves.items() if path not in tensors}


def restore_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Plain
) -> None:
    """Take up what `state_of` returned of an optimizer of the same settings.

    Raises:
        KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError: it is the state
            of other parameters or of another optimizer.
    """
    tree, whole = tree_of({**tensors, **plain}), optimizer.state_dict()
    groups = [
        {**group, **tree.pop(f"{GROUP}{number}", {})}
        for number, group in enumerate(whole["param_groups"])
    ]
    state = {int(index): one for index, one in tree.items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for param, buffers in optimizer.state.items():
        for name, value in buffers.items():
            if isinstance(value, Tensor) and value.shape == param.shape:
                # Contiguous in the file, but fused kernels need the parameter's strides.
                like = torch.empty_like(param, dtype=value.dtype, requires_grad=False)
                buffers[name] = like.copy_(value)


def changed(group: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a group has that it had not at first, without parameters and learning rates."""
    fixed = ("params", "lr", "initial_lr")
    return {
        key: value
        for key, value in group.items()
        if key not in fixed and (key not in first or value != first[key])
    }


def leaves_of(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all that stands in nested mappings, with its path."""
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for key, value in tree.items():
        yield from leaves_of(value, f"{path}/{key}" if path else str(key))


def tree_of(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested mappings whose leaves these are."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = leaf
    return tree
