"""Saving of weights as safetensors, and loading of ours and of other code bases' checkpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from kdbench.errors import ConfigError, KdbenchError, nearest
from kdbench.records.state_dicts import StateDict, candidates, is_of_a_network, named
from kdbench.records.weight_files import read_content
from kdbench.system.files import named_path, write_atomically

STUDENT_FILE = "student.safetensors"
EMA_FILE = "student_ema.safetensors"  # the moving average of its weights
REUSED = "teacher_weight"  # of `kdbench.networks.heads.ReusedHead`, whose parts need each other
SHOWN = 4  # names of a file's other contents in one line


def find_checkpoint(name: str, runs_dir: Path) -> Path:
    """Find the weight file that a user names: a file, a run's folder, or a run's name.

    A run's name may omit the hash, as `digits-none-resnet20-ce-s0`, where only one run below
    `runs_dir` matches it.

    Raises:
        KdbenchError: there is none, or several runs match.
    """
    path = named_path(name)
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
    raise KdbenchError(
        f"no checkpoint {name}: no such file, and no such run in {runs_dir} ({hint})"
    )


def load_weights(
    network: nn.Module,
    path: Path,
    name: str,
    key: str | None = None,
    option: str = "checkpoint_key",
    new_head: bool = False,
) -> list[str]:
    """Load a weight file into a network; only `num_batches_tracked` may be missing from it.

    The file may hold a state dict under any keys and one prefix, with anything else beside it.

    Args:
        network: the network, built for the data set's classes.
        path: the file, see `kdbench.records.weight_files`.
        name: the network's name, for error lines.
        key: the name of the set of weights, where several fit.
        option: the configuration key by which a user sets `key`.
        new_head: a classifier with another number of classes may be left out.

    Returns:
        Lines for the user, about contents of the file that the network lacks.

    Raises:
        ConfigError: several sets of weights fit, or none has the name `key`.
        KdbenchError: the file is another network's, or has another number of classes.
    """
    own = network.state_dict()
    found = candidates(read_content(path), own)
    if not any(one.tensors for one in found):
        raise KdbenchError(f"{path} holds no weights: give a state dict")
    meant = found if key is None else named(found, key)
    fits = [one for one in meant if fits_network(one, own, new_head)]
    if key is not None and not meant:
        names = [one.name for one in found if fits_network(one, own, new_head)]
        hint = nearest(key, names or [one.name for one in found])
        raise ConfigError(f"{path} holds no weights of a {name} under {option}={key}: {hint}")
    if len(fits) > 1:
        names = [one.name for one in fits]
        raise ConfigError(
            f"{path} holds several sets of weights that fit a {name} ({', '.join(names)}): choose "
            f"one with {option}=KEY, as {option}={names[0]}"
        )
    if not fits:
        raise KdbenchError(f"{path} {why_not(meant[0], own, name)}")
    (chosen,) = fits
    refuse_attached(chosen, path, name, option, chosen_by_user=key is not None)
    odd = chosen.other_shapes(own)
    kept = {key: own[key] if key in odd else chosen.tensors.get(key, own[key]) for key in own}
    network.load_state_dict(kept)
    return notes(chosen, own, path, name)


def fits_network(one: StateDict, own: Mapping[str, Tensor], new_head: bool) -> bool:
    """Return whether weights are a network's, except for its classifier where `new_head` allows."""
    if one.misfit(own) is not None:
        return False
    return not one.other_shapes(own) or (new_head and one.head(own) is not None)


def why_not(one: StateDict, own: Mapping[str, Tensor], name: str) -> str:
    """Return the end of the error line for a file whose nearest set of weights does not fit."""
    misfit, head, odd = one.misfit(own), one.head(own), one.other_shapes(own)
    if misfit is not None:
        return f"is not of a {name} ({misfit}): name the network it is of"
    if head is not None:
        return f"has {head[0]} classes, the data set {head[1]}: they must agree"
    shapes = f"{odd[0]} is {list(one.tensors[odd[0]].shape)}, not {list(own[odd[0]].shape)}"
    return f"is not of a {name} ({shapes}): name the network it is of"


def refuse_attached(
    one: StateDict, path: Path, name: str, option: str, chosen_by_user: bool
) -> None:
    """Refuse a part of a network that a method has adapted, unless the user chose that part.

    Raises:
        KdbenchError: there are weights beside it that belong to no other network.
    """
    added = [key for key in one.beside if not is_of_a_network(key)]
    if not added:
        return
    line = f"{path} is no {name} alone but what a method such as simkd made of one"
    if any(
        key.rpartition(".")[2] == "teacher_weight" for key in added
    ):  # networks.heads.ReusedHead
        raise KdbenchError(f"{line} (it has {min(added)}): its scores are in its run's record.json")
    if not chosen_by_user:
        raise KdbenchError(f"{line} (it has {min(added)}): take that part with {option}={one.name}")


def notes(one: StateDict, own: Mapping[str, Tensor], path: Path, name: str) -> list[str]:
    """Return lines for the user about loaded weights."""
    lines = []
    surplus = [k for k in one.surplus(own) if not k.endswith("num_batches_tracked")]
    if surplus:
        kinds = list(dict.fromkeys(key.rpartition(".")[2] for key in surplus))
        lines.append(
            f"{path}: {some(kinds)} ({len(surplus)} tensors) are no weights of a {name} and are "
            "left out"
        )
    if one.other_shapes(own):
        theirs, ours = one.head(own) or (0, 0)
        lines.append(f"{path} has {theirs} classes, the data set {ours}: {name} gets a new head")
    return lines


def some(names: Sequence[str]) -> str:
    """Return the first names of many, as text."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's state dict as safetensors.

    Raises:
        OSError: the folder cannot be written.
    """
    tensors = {
        key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()
    }
    write_atomically(path, save(tensors))
