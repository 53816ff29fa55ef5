"""A run's checkpoints: written whole or not at all, and used only if their checksum is right."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kdbench.system.files import open_own, same_file, write_atomically

KEPT = 2  # if the newest one is torn, the previous one remains


class Checkpoint(NamedTuple):
    """The state from which a run goes on as if it had never stopped."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]  # JSON


def save_tensors(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and JSON state with a checksum over both, whole or not at all.

    safetensors neither detects flipped bits nor keeps channels_last strides, so tensors are made
    contiguous and hashed here.

    Raises:
        OSError: the folder cannot be written; no file of that name is touched.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    text = json.dumps(state)
    metadata = {"state": text, "checksum": _checksum(tensors, text)}
    write_atomically(path, save(tensors, metadata))


def load_tensors(path: Path) -> Checkpoint | None:
    """Read a file of `save_tensors`; None if it is torn, altered or not a run's."""
    try:
        with (
            os.fdopen(open_own(path, os.O_RDONLY), "rb") as own,
            safe_open(same_file(own), framework="pt") as file,
        ):
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        state = json.loads(metadata.get("state", ""))
    except (SafetensorError, OSError, ValueError, RecursionError):
        return None
    if metadata.get("checksum") != _checksum(tensors, metadata["state"]):
        return None
    if not isinstance(state, dict) or type(state.get("step")) is not int:
        return None
    if not isinstance(state.get("exact", {}), dict):
        return None
    return Checkpoint(tensors, state)


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_checkpoint(folder: Path, step: int, checkpoint: Checkpoint) -> None:
    """Write a run's checkpoint after `step` steps and drop all but the last two."""
    save_tensors(checkpoint_path(folder, step), *checkpoint)
    for old in checkpoint_paths(folder)[:-KEPT]:
        old.unlink()


def load_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[Path]]:
    """Return the newest valid checkpoint, and the newer damaged ones."""
    damaged: list[Path] = []
    for path in reversed(checkpoint_paths(folder)):
        checkpoint = load_tensors(path)
        if checkpoint is not None:
            return checkpoint, damaged
        damaged.append(path)
    return None, damaged


def newest_sound(folder: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest valid checkpoint; damaged ones are reported and removed."""
    checkpoint, damaged = load_checkpoint(folder)
    for path in damaged:
        report(f"{path} is damaged and is not used")
        path.unlink()
    return checkpoint


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint after `step` steps."""
    return folder / f"checkpoint-{step:09d}.safetensors"


def checkpoint_paths(folder: Path) -> list[Path]:
    """Return the paths of a run's checkpoints, oldest first."""
    return sorted(folder.glob("checkpoint-*.safetensors"))
