"""A run's whole state as one checkpoint: everything on which the next step depends."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import KdbenchError, first_line
from kdbench.records.checkpoint import Checkpoint
from kdbench.training.optimizer import Optimizer
from kdbench.training.step import Sums

Row = dict[str, float]  # one epoch's metrics


@dataclass
class Position:
    """The progress of a run."""

    step: int = 0  # steps done, over all epochs
    seconds: float = 0.0  # spent training and evaluating, resumes included
    seconds_share: float = 0.0  # `seconds`, divided among the runs that trained side by side
    cpu_seconds: float = 0.0  # of all threads of the process, divided likewise
    history: list[Row] = field(default_factory=list)  # finished epochs
    sums: Sums = field(default_factory=dict)  # of the running epoch


@dataclass
class Moving:
    """The state that a step changes, apart from the position."""

    student: nn.Module
    method: nn.Module
    optimizer: Optimizer
    generator: torch.Generator  # of the method's draws
    random: dict[str, Tensor]  # states of torch's own generators, for dropout in foreign networks

    @property
    def device(self) -> torch.device:
        """The device that holds all of it."""
        return self.generator.device


def start_randomness(seed: int, device: torch.device) -> dict[str, Tensor]:
    """Seed torch's own generators, and return their states."""
    torch.manual_seed(seed)
    return _randomness(device)


def _randomness(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


@contextmanager
def own_randomness(moving: Moving) -> Iterator[None]:
    """Run the enclosed code on this run's states of torch's own generators."""
    torch.set_rng_state(moving.random["cpu"])
    if "cuda" in moving.random:
        torch.cuda.set_rng_state(moving.random["cuda"], moving.device)
    yield
    moving.random = _randomness(moving.device)


def take(moving: Moving, position: Position) -> Checkpoint:
    """Return the state after `position.step` steps."""
    tensors: dict[str, Tensor] = {}
    for owner, module in (("student", moving.student), ("method", moving.method)):
        tensors |= {f"{owner}/{key}": value for key, value in module.state_dict().items()}
    for index, state in moving.optimizer.sgd.state_dict()["state"].items():
        tensors |= {
            f"optimizer/{index}/{key}": value
            for key, value in state.items()
            if isinstance(value, Tensor)
        }
    tensors |= {f"sums/{key}": value for key, value in position.sums.items()}
    random = {"draw": moving.generator.get_state(), **moving.random}
    tensors |= {f"random/{key}": value for key, value in random.items()}
    state = {key: value for key, value in vars(position).items() if key != "sums"}
    return Checkpoint(tensors, state)


def restore(moving: Moving, checkpoint: Checkpoint, folder: Path) -> Position:
    """Restore the state, and return the position at which it was taken.

    Raises:
        KdbenchError: the state does not belong to the run in `folder`.
    """
    try:
        return _restore(moving, checkpoint)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise KdbenchError(
            f"the newest checkpoint in {folder} holds another state than this run has "
            f"({type(error).__name__}: {first_line(error)}): go on with the version that wrote it, "
            "or remove the folder to start anew"
        ) from None


def _restore(moving: Moving, checkpoint: Checkpoint) -> Position:
    owned: dict[str, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        owner, _, key = name.partition("/")
        owned.setdefault(owner, {})[key] = tensor
    moving.student.load_state_dict(owned["student"])
    moving.method.load_state_dict(owned.get("method", {}))
    buffers: dict[int, dict[str, Any]] = {}
    for key, value in owned.get("optimizer", {}).items():
        index, _, name = key.partition("/")
        buffers.setdefault(int(index), {})[name] = value
    groups = moving.optimizer.sgd.state_dict()["param_groups"]
    moving.optimizer.sgd.load_state_dict({"state": buffers, "param_groups": groups})
    for param, state in moving.optimizer.sgd.state.items():
        for name, value in state.items():  # contiguous in the file, but fused kernels need the
            state[name] = torch.empty_like(param, requires_grad=False).copy_(value)  # same strides
    moving.generator.set_state(owned["random"].pop("draw"))
    moving.random |= {key: owned["random"][key] for key in moving.random if key in owned["random"]}
    sums = {key: value.to(moving.device) for key, value in owned.get("sums", {}).items()}
    position = Position(sums=sums, **checkpoint.state)
    if not all(isinstance(row, dict) for row in position.history):
        raise TypeError("its history has other rows than epochs")
    return position
