"""The machine that a run uses; nothing here is part of a run's identity."""

import os
from typing import Literal

import torch

from kdbench.errors import ConfigError, KdbenchError
from kdbench.parallel.ranks import Ranks
from kdbench.parallel.torchrun import place
from kdbench.system.precision import allow_tf32


class Runtime:
    """The device and the way a run computes; it may change rounding, never the recipe.

    `compile` sets how far networks are rewritten before they run. off: not at all. auto: the batch
    norms of frozen teachers are folded; on a CPU teachers are also compiled, where enough teacher
    forwards are needed for it to pay (`kdbench.teachers.frozen.WORTH_COMPILING`); on a GPU steps
    are recorded as CUDA graphs, and the students of long runs are compiled. on: like auto, with
    every teacher compiled, and on a GPU every student and the losses of every method.

    `fused` sets whether students of one architecture in a cohort train as one stacked network
    (`kdbench.training.fused`): on, off, or auto, which is off until a GPU has shown that it pays.

    Checkpoints are written after every `checkpoint_epochs` epochs and, unless null, after every
    `checkpoint_steps` steps. `exact` uses deterministic algorithms only, and resumes a run only
    under the conditions of its start (`kdbench.records.reproducibility`): the run then ends with
    the bits of an undisturbed run.

    `ranks` are the processes that torchrun has started for the same runs, each with its own GPU.

    Raises:
        ConfigError: a setting that makes no sense.
        KdbenchError: `device=cuda` on a machine without a GPU.
    """

    def __init__(
        self,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int | None = None,
        channels_last: bool = False,
        checkpoint_epochs: int = 1,
        checkpoint_steps: int | None = None,
        exact: bool = False,
        teacher: Literal["auto", "live", "table"] = "auto",
        table_dir: str | None = None,
        compile: Literal["auto", "on", "off"] = "auto",
        fused: Literal["auto", "on", "off"] = "auto",
    ) -> None:
        if threads is not None and threads < 1:
            raise ConfigError(f"runtime.threads must be 1 or more, or null, not {threads}")
        if checkpoint_epochs < 1:
            raise ConfigError(f"runtime.checkpoint_epochs must be 1 or more: {checkpoint_epochs}")
        if checkpoint_steps is not None and checkpoint_steps < 1:
            raise ConfigError(
                f"runtime.checkpoint_steps must be 1 or more, or null: {checkpoint_steps}"
            )
        if exact and fused == "on":
            raise ConfigError(
                "runtime.fused=on rounds by the number of runs side by side, which runtime=exact "
                "rules out: set runtime.fused=off"
            )
        if device == "cuda" and not torch.cuda.is_available():
            raise KdbenchError(
                "runtime=cuda, but torch sees no GPU: use runtime=cpu or runtime=auto"
            )
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.ranks = Ranks(place())
        self.device = torch.device(device)
        if device == "cuda" and self.ranks.count > 1:
            gpus = torch.cuda.device_count()
            if self.ranks.local >= gpus:
                raise KdbenchError(
                    f"rank {self.ranks.number} has no GPU, of {gpus} here: start as many ranks as "
                    "there are GPUs"
                )
            self.device = torch.device(device, self.ranks.local)
        self.threads = threads
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.checkpoint_epochs, self.checkpoint_steps = checkpoint_epochs, checkpoint_steps
        self.exact = exact
        self.teacher, self.table_dir = teacher, table_dir
        self.compile, self.fused = compile, fused

    @property
    def overlaps(self) -> bool:
        """Whether ranks add up while a backward pass runs (`kdbench.parallel.overlap`)."""
        return self.ranks.count > 1 and not self.exact

    def apply(self) -> None:
        """Apply the settings that are global to the process, and join the other ranks."""
        if self.device.index is not None:
            torch.cuda.set_device(self.device)
        self.ranks.join(self.device)
        allow_tf32(False)  # passes that may use it enable it (`arithmetic`)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if torch.are_deterministic_algorithms_enabled() != self.exact:
            torch.use_deterministic_algorithms(self.exact)
        # cuDNN's benchmark picks the fastest algorithm for each convolution and may pick another
        # one each time, with other bits.
        torch.backends.cudnn.benchmark = self.device.type == "cuda" and not self.exact
        if self.exact:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
