"""Weight files in and out: safetensors of ours, and checkpoints of other code bases."""

import os
import pickle
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kdbench.errors import KdbenchError, first_line, nearest
from kdbench.system.files import write_atomically

STUDENT_FILE = "student.safetensors"
ZIP_START = b"PK\3\4"  # by which PyTorch knows an archive
_WRAPPERS = ("model", "state_dict", "net", "student")
# What mdistiller's and RepDistiller's files hold besides tensors: NumPy numbers (the accuracy) and
# the command line. None of these runs code when it is loaded.
_numpy_scalar = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    Namespace,
    np.dtype,
    np.ndarray,
    np.zeros(1).__reduce__()[0],
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int64")),
    _numpy_scalar,
    (_numpy_scalar, "numpy.core.multiarray.scalar"),  # its name in files of NumPy 1
]


def find_checkpoint(name: str, runs_dir: Path) -> Path:
    """The weight file that a user names: a file, a run's folder, or a run's name.

    A run's name may stop before the hash, as `digits-none-resnet20-ce-s0`, where only one run
    below `runs_dir` answers to it.

    Raises:
        KdbenchError: there is none, or several runs answer.
    """
    path = Path(os.path.expanduser(name))  # unlike Path's, it leaves a user that nobody is
    if path.is_dir():
        path = path / STUDENT_FILE
    if path.is_file():
        return path
    runs = sorted(p.parent for p in runs_dir.glob(f"*/{STUDENT_FILE}"))
    found = [run for run in runs if run.name == name or run.name.rpartition("-")[0] == name]
    if len(found) == 1:
        return found[0] / STUDENT_FILE
    if found:
        names = ", ".join(run.name for run in found)
        raise KdbenchError(f"several runs are called {name}: name one of {names}")
    hint = nearest(name, [run.name for run in runs])
    raise KdbenchError(f"no checkpoint {name}: no such file, and no such run in {runs_dir}; {hint}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a weight file; nothing in it can run code.

    Understands safetensors, plain state dicts, and the dictionaries of other code bases that hold
    one under "model", "state_dict", "net" or "student"; strips DataParallel's "module." prefix.

    Raises:
        KdbenchError: unreadable, truncated, or with anything but plain data inside.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except KdbenchError:
        raise
    except pickle.UnpicklingError as error:
        raise KdbenchError(
            f"{path} is refused: it holds more than plain data and could run code, or is no "
            f"checkpoint ({first_line(error)}); save its state dict alone"
        ) from None
    except Exception as error:  # a broken file makes the unpickler raise nearly anything
        raise KdbenchError(
            f"{path} cannot be read ({first_line(error)}): is it truncated?"
        ) from None
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    tensors = {
        str(key).removeprefix("module."): value
        for key, value in (content.items() if isinstance(content, Mapping) else ())
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise KdbenchError(f"{path} holds no weights: give a state dict")
    return tensors


def _unpickle(path: Path) -> Any:
    with path.open("rb") as file:  # one descriptor, from the check to the use
        if holds_more(file):
            raise KdbenchError(f"{path} is refused: it is compressed, as PyTorch writes none")
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(file, map_location="cpu", weights_only=True)


def holds_more(file: BinaryIO) -> bool:
    """Whether a file is an archive that would fill more memory than its own bytes.

    It is asked of the reader that PyTorch uses: Python's may see another archive in the file, or
    none.
    """
    if file.read(len(ZIP_START)) != ZIP_START:
        file.seek(0)
        return False
    file.seek(0)
    reader = torch._C.PyTorchFileReader(file)
    sizes = [reader.get_record_size(name) for name in reader.get_all_records()]
    return sum(sizes) > file.seek(0, os.SEEK_END) + file.seek(0)


def load_weights(network: nn.Module, path: Path, name: str) -> None:
    """Load a weight file into a network; only `num_batches_tracked` may be missing from it.

    Args:
        network: built for the data set's classes.
        path: the file, see `read_tensors`.
        name: the network's name, for error lines.

    Raises:
        KdbenchError: the file is of another network or another number of classes.
    """
    tensors = read_tensors(path)
    own = network.state_dict()
    lacking = [k for k in own if k not in tensors and not k.endswith("num_batches_tracked")]
    surplus = [key for key in tensors if key not in own]
    if lacking and all(f"student.{key}" in tensors for key in lacking):
        added = min((key for key in surplus if not key.startswith("student.")), default="a wrapper")
        raise KdbenchError(
            f"{path} is no {name} alone but what a method such as simkd made of one (it has "
            f"{added}): its scores are in its run's record.json"
        )
    if lacking or surplus:
        example = f"it lacks {lacking[0]}" if lacking else f"it has {surplus[0]}"
        raise KdbenchError(f"{path} is not of a {name} ({example}): name the network it is of")
    odd = [key for key in own if key in tensors and tensors[key].shape != own[key].shape]
    if odd and all(tensors[key].shape[1:] == own[key].shape[1:] for key in odd) and len(odd) <= 2:
        theirs, ours = len(tensors[odd[0]]), len(own[odd[0]])
        raise KdbenchError(f"{path} has {theirs} classes, the data set {ours}: they must agree")
    if odd:
        shapes = f"{odd[0]} is {list(tensors[odd[0]].shape)}, not {list(own[odd[0]].shape)}"
        raise KdbenchError(f"{path} is not of a {name} ({shapes}): name the network it is of")
    network.load_state_dict({key: tensors.get(key, own[key]) for key in own})


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's state dict as safetensors.

    Raises:
        OSError: the folder cannot be written.
    """
    tensors = {
        key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()
    }
    write_atomically(path, save(tensors))
