"""A run's whole state as one checkpoint: everything on which the next step depends."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import KdbenchError, first_line
from kdbench.methods.base import Method
from kdbench.records.checkpoint import Checkpoint
from kdbench.tasks.task import Row, Sums
from kdbench.training.optimizer import Optimizer


@dataclass
class TrainState:
    """How far a run is: all that its steps change, and so all that a checkpoint holds."""

    student: nn.Module
    method: Method
    optimizer: Optimizer
    generator: torch.Generator  # of the method's draws
    random: dict[str, Tensor]  # states of torch's own generators, for dropout in foreign networks
    step: int = 0  # steps done, over all epochs
    seconds: float = 0.0  # spent training and evaluating, resumes included
    seconds_share: float = 0.0  # `seconds`, divided among the runs that trained side by side
    cpu_seconds: float = 0.0  # of all threads of the process, divided likewise
    history: list[Row] = field(default_factory=list)  # a row for each score
    sums: Sums = field(default_factory=dict)  # of the steps since the last row

    @property
    def device(self) -> torch.device:
        """The device that holds all of it."""
        return self.generator.device


PLAIN = ("step", "seconds", "seconds_share", "cpu_seconds", "history")  # JSON in a checkpoint


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
def own_randomness(state: TrainState) -> Iterator[None]:
    """Run the enclosed code on this run's states of torch's own generators."""
    torch.set_rng_state(state.random["cpu"])
    if "cuda" in state.random:
        torch.cuda.set_rng_state(state.random["cuda"], state.device)
    yield
    state.random = _randomness(state.device)


def take(state: TrainState) -> Checkpoint:
    """Return the state as a checkpoint."""
    tensors: dict[str, Tensor] = {}
    for owner, module in (("student", state.student), ("method", state.method)):
        tensors |= {f"{owner}/{key}": value for key, value in module.state_dict().items()}
    if state.optimizer.ema is not None:
        average = state.optimizer.ema.module.state_dict()
        tensors |= {f"ema/{key}": value for key, value in average.items()}
    buffers, counts = state.optimizer.state()
    tensors |= {f"optimizer/{path}": value for path, value in buffers.items()}
    tensors |= {f"sums/{key}": value for key, value in state.sums.items()}
    random = {"draw": state.generator.get_state(), **state.random}
    tensors |= {f"random/{key}": value for key, value in random.items()}
    plain: dict[str, Any] = {key: getattr(state, key) for key in PLAIN}
    if counts:
        plain["optimizer"] = counts
    return Checkpoint(tensors, plain)


def restore(state: TrainState, checkpoint: Checkpoint, folder: Path) -> None:
    """Take up the state of a checkpoint.

    Raises:
        KdbenchError: the checkpoint does not belong to the run in `folder`.
    """
    try:
        _restore(state, checkpoint)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise KdbenchError(
            f"the newest checkpoint in {folder} holds another state than this run has "
            f"({type(error).__name__}: {first_line(error)}): go on with the version that wrote it, "
            "or remove the folder to start anew"
        ) from None


def _restore(state: TrainState, checkpoint: Checkpoint) -> None:
    owned: dict[str, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        owner, _, key = name.partition("/")
        owned.setdefault(owner, {})[key] = tensor
    state.student.load_state_dict(owned["student"])
    state.method.load_state_dict(owned.get("method", {}))
    if state.optimizer.ema is not None:
        state.optimizer.ema.module.load_state_dict(owned["ema"])
    counts = checkpoint.state.get("optimizer", {})
    state.optimizer.restore(owned.get("optimizer", {}), counts)
    state.generator.set_state(owned["random"].pop("draw"))
    state.random |= {key: owned["random"][key] for key in state.random if key in owned["random"]}
    state.sums = {key: value.to(state.device) for key, value in owned.get("sums", {}).items()}
    if unknown := set(checkpoint.state) - {*PLAIN, "optimizer"}:
        raise KeyError(", ".join(sorted(unknown)))
    for key in PLAIN:
        setattr(state, key, checkpoint.state[key])
    if not all(isinstance(row, dict) for row in state.history):
        raise TypeError("its history has other rows than epochs")
