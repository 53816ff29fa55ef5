"""The facts besides its settings on which a run's bits depend; `runtime=exact` requires them."""

from pathlib import Path
from typing import Any

import torch

from kdbench.errors import ConfigError
from kdbench.system.hardware import hardware
from kdbench.system.runtime import Runtime

EXACT_FILE = "exact.json"  # of a run's folder

Facts = dict[str, Any]
ALONE: Facts = {"ranks": 1}  # the default, which is not written

# How to restore a fact; the others are those of a machine.
MENDED_BY = {
    "threads": "set runtime.threads={}",
    "channels_last": "set runtime.channels_last={}",
    "compile": "set runtime.compile={}",
    "device": "set runtime.device={}",
    "ranks": "start it with torchrun --nproc-per-node={}",
    "instruction_set": "set the environment variable ATEN_CPU_CAPABILITY={} where it can do that",
    "torch": "install torch {}",
}


def exact_facts(runtime: Runtime) -> Facts | None:
    """Return these facts, once `runtime.apply` has been called; None without `runtime.exact`.

    The processor's name is one of them, since oneDNN and cuBLAS choose kernels by the instruction
    set and by further properties, such as the sizes of caches.
    """
    if not runtime.exact:
        return None
    machine = hardware(runtime.device)
    del machine["cores"]
    layout = runtime.memory_format == torch.channels_last
    settings: Facts = {"channels_last": layout, "compile": runtime.compile}
    if runtime.ranks.count > 1:
        settings["ranks"] = runtime.ranks.count
    return {**machine, **settings, "torch": str(torch.__version__)}


def check_exact(folder: Path, before: Facts | None, now: Facts | None) -> None:
    """Refuse to resume where the bits would differ from those of an undisturbed run.

    Args:
        folder: the run's folder.
        before: the facts when its checkpoint was written.
        now: the present facts.

    Raises:
        ConfigError: a fact differs; the message names it, and how to mend it.
    """
    if before == now:
        return
    anew = f"or remove {folder} to start anew"
    if before is None:
        raise ConfigError(
            f"{folder.name} was not started under runtime=exact, which vouches for whole runs: go "
            f"on without, {anew}"
        )
    if now is None:
        raise ConfigError(f"{folder.name} was started under runtime=exact: go on with it, {anew}")
    before, now = {**ALONE, **before}, {**ALONE, **now}
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    differs = ", ".join(f"{key} {before.get(key)}, not {now.get(key)}" for key in keys)
    mends = [mend(key, before[key]) for key in keys if key in MENDED_BY and key in before]
    ways = "; ".join(mends) or "go on there"
    raise ConfigError(
        f"{folder.name} was started under runtime=exact with {differs}: {ways}, {anew}"
    )


def mend(key: str, value: Any) -> str:
    """Say how to give a fact this value again."""
    text = str(value).lower() if key in ("channels_last", "instruction_set") else value
    return MENDED_BY[key].format(text)
