"""One run, as a member of the cohort that trains it: its step, its scores, its files."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from kdbench.assembly.evaluation import Scores, evaluate
from kdbench.data.base import Dataset, Split
from kdbench.errors import DivergedError, KdbenchError, writing
from kdbench.methods.base import Method
from kdbench.records.checkpoint import (
    Checkpoint,
    checkpoint_path,
    load_tensors,
    newest_sound,
    save_checkpoint,
)
from kdbench.records.reproducibility import check_exact, exact_facts
from kdbench.seeds import derive
from kdbench.system.console import Console
from kdbench.system.cuda_graphs import Replayed, recorder_for
from kdbench.system.precision import arithmetic, at_precision
from kdbench.system.runtime import Runtime
from kdbench.tracking.run_logger import RunLogger
from kdbench.training.accumulation import Accumulation
from kdbench.training.compiled_students import for_training
from kdbench.training.micro_batches import Part
from kdbench.training.optimizer import Optimizer
from kdbench.training.schedule import Schedule
from kdbench.training.snapshot import (
    Row,
    TrainState,
    own_randomness,
    restore,
    start_randomness,
    take,
)
from kdbench.training.step import Sums, train_step, update
from kdbench.types import Batch, Network, Output


class Member:
    """What is trained: a run on its device, with its state, evaluation and files.

    `state` holds all that its steps change; the rest is settled from its start.
    """

    def __init__(
        self,
        run_id: str,
        seed: int,
        student: nn.Module,
        method: Method,
        dataset: Dataset,
        schedule: Schedule,
        runtime: Runtime,
        folder: Path,
        console: Console,
        loggers: Sequence[RunLogger],
    ) -> None:
        self.run_id, self.seed, self.folder = run_id, seed, folder
        self.method, self.dataset, self.schedule, self.runtime = method, dataset, schedule, runtime
        self.console, self.loggers = console, loggers
        for module in (student, method):
            module.to(runtime.device).to(memory_format=runtime.memory_format)
        generator = torch.Generator(runtime.device).manual_seed(derive(seed, "draw"))
        optimizer = Optimizer(schedule, student, method)
        random = start_randomness(derive(seed, "train"), runtime.device)
        self.state = TrainState(student, method, optimizer, generator, random)
        self.network = at_precision(student, schedule.precision)  # the student as it is called
        self.accumulation = Accumulation(self.network, self.state, seed, runtime.ranks)
        recorder = recorder_for(runtime) if schedule.micro_batches == 1 else None
        self.steps_per_epoch = math.ceil(len(dataset.train.labels) / schedule.batch_size)
        trained: Network = self.network if recorder is None else self.ready_student()
        whole = partial(update, trained, method, optimizer)
        self.replayed = Replayed(whole, recorder, run_id, console.message) if recorder else None
        self.exact = exact_facts(runtime)
        self.error: Exception | None = None  # the reason for leaving its cohort
        self.companions = 0  # other runs of its cohort
        self.infinite_teachers: Callable[[], list[str]] = list  # names those with infinite outputs

    def ready_student(self) -> Network:
        """Return the student as training steps call it."""
        schedule = self.schedule
        shape = torch.Size((schedule.batch_size, *self.dataset.train.images.shape[1:]))
        steps = self.steps_per_epoch * schedule.epochs
        settings = schedule.precision, self.runtime, steps, self.console.message
        return for_training(self.network, self.method.taps, shape, *settings)

    def resume(self) -> None:
        """Restore the newest valid checkpoint; start from the beginning where there is none.

        Raises:
            ConfigError: the checkpoint was written under conditions that `runtime.exact` forbids.
        """
        checkpoint = self.newest_checkpoint()
        if checkpoint is not None:
            check_exact(self.folder, checkpoint.state.pop("exact", None), self.exact)
            restore(self.state, checkpoint, self.folder)
            self.state.optimizer.guard.start(self.state.step)
            self.console.message(f"{self.run_id}: going on after step {self.state.step}")

    def newest_checkpoint(self) -> Checkpoint | None:
        """Return the newest valid checkpoint that the first rank finds; remove damaged ones.

        Raises:
            KdbenchError: another rank cannot read it.
        """
        ranks, folder = self.runtime.ranks, self.folder
        checkpoint = newest_sound(folder, self.console.message) if ranks.first else None
        step = ranks.exchange("" if checkpoint is None else str(checkpoint.state["step"]))[0]
        if not step:
            return None
        return ranks.together(lambda: checkpoint or self.read_checkpoint(int(step)))

    def read_checkpoint(self, step: int) -> Checkpoint:
        """Read the checkpoint after `step` steps, which the first rank has found.

        Raises:
            KdbenchError: this rank cannot read it.
        """
        path = checkpoint_path(self.folder, step)
        checkpoint = load_tensors(path)
        if checkpoint is None:
            raise KdbenchError(
                f"rank {self.runtime.ranks.number} cannot read {path}: set runs_dir to a "
                "folder that all ranks share"
            )
        return checkpoint

    def start(self) -> None:
        """Tell the loggers that training starts or goes on."""
        self.tell(lambda logger: logger.start(self.state.history))

    def tell(self, news: Callable[[RunLogger], None]) -> None:
        """Tell the loggers; only the first rank has any."""

        def act() -> None:
            for logger in self.loggers:
                news(logger)

        self.runtime.ranks.by_first(act)

    def start_epoch(self, epoch: int) -> None:
        """Prepare the steps of `epoch` (from 1)."""
        self.state.optimizer.start_epoch(epoch)
        self.state.student.train()

    def step(self, batch: Batch, teachers: tuple[Output, ...]) -> None:
        """Update the student once, without waiting for the device.

        On a GPU the update runs concurrently with later work, until the next `check`.
        """
        aside = self.replayed.recorder.aside() if self.replayed is not None else nullcontext()
        with aside, arithmetic(self.schedule.precision):
            self._step(batch, teachers)

    def _step(self, batch: Batch, teachers: tuple[Output, ...]) -> None:
        state, replayed = self.state, self.replayed
        state.optimizer.warm_up(self.state.step, self.steps_per_epoch)
        if replayed is not None and replayed.recordings:  # it draws no random numbers
            self.count_step(self._replay(replayed, batch, teachers))
            return
        before = state.random
        with own_randomness(state):
            if replayed is not None:
                sums = self._replay(replayed, batch, teachers)
            else:
                parts = state.optimizer, batch, state.generator
                sums = train_step(self.network, self.method, teachers, *parts)
        drew = any(not torch.equal(state.random[key], before[key]) for key in before)
        if replayed is not None and not replayed.refused and drew:
            replayed.refuse("its forward pass draws random numbers")
        self.count_step(sums)

    def _replay(self, replayed: Replayed, batch: Batch, teachers: tuple[Output, ...]) -> Sums:
        """Do `train_step` with everything after the draw as one recording, where possible."""
        method = self.method
        batch = batch._replace(drawn=method.draw(batch, self.state.generator))
        read = tuple(  # taps that the method does not read need not be copied
            Output(logits, {tap: taps[tap] for tap in method.taps})
            for logits, taps in (teachers if method.num_teachers != 0 else ())
        )
        return replayed(batch, read)

    def start_parts(self, size: int) -> None:
        """Begin a step on a batch of `size` images, in micro-batches."""
        self.state.optimizer.warm_up(self.state.step, self.steps_per_epoch)
        self.accumulation.start(self.state.step, size)

    def add_part(self, part: Part, batch: Batch, teachers: tuple[Output, ...]) -> None:
        """Compute one micro-batch of the step; no parameter moves yet."""
        with arithmetic(self.schedule.precision):
            self.accumulation.add(part, batch, teachers)

    def finish_parts(self, index: Tensor) -> None:
        """End the step on the images at `index` [B] with one update from all micro-batches."""
        self.count_step(self.accumulation.finish(index))

    def count_step(self, sums: Sums) -> None:
        """Count a step that is done, and add its sums."""
        state = self.state
        if state.sums:  # on a GPU, one kernel adds them all
            torch._foreach_add_([state.sums[key] for key in sums], list(sums.values()))
        else:
            state.sums = {key: value.clone() for key, value in sums.items()}
        state.step += 1

    def check(self) -> None:
        """Wait for the device and check that all steps so far were finite.

        Raises:
            DivergedError: a step had a loss or a gradient that is not finite.
        """
        if self.replayed is not None:
            self.replayed.recorder.join()
        step = self.state.optimizer.guard.read()
        if step is not None:
            what = f"the loss or a gradient of step {step}"
            raise self.diverged(len(self.state.history) + 1, step, what)

    def finish_epoch(self, epoch: int, scored: Mapping[str, Split]) -> Row:
        """Score the epoch on splits by name and return its row, still without "seconds".

        Raises:
            DivergedError: a step, or a score, is not finite.
        """
        self.check()
        count = len(self.dataset.train.labels)
        means = {name: value.item() / count for name, value in self.state.sums.items()}
        row: Row = {"epoch": epoch, "lr": self.state.optimizer.lr}
        for name, value in means.items():
            if name != "hits":
                row[name if name.startswith("method/") else f"train/{name}"] = value
        row["train/top1"] = 100 * means["hits"]
        for name, split in scored.items():
            scores = self.score(split)
            row |= {f"{name}/{key}": getattr(scores, key) for key in ("top1", "top5", "loss")}
        odd = [name for name, value in row.items() if not math.isfinite(value)]
        if odd:
            raise self.diverged(epoch, self.state.step, f"its {odd[0]}")
        return row

    def diverged(self, epoch: int, step: int, what: str) -> DivergedError:
        """Return the error for numbers that are not finite, which names their cause."""
        return DivergedError(self.run_id, epoch, step, what, self.infinite_teachers())

    def score(self, split: Split) -> Scores:
        """Score the student on a split."""
        runtime = self.runtime
        where = runtime.device, runtime.memory_format, runtime.ranks
        return evaluate(self.network, split, self.dataset, *where, self.schedule.precision)

    def close_epoch(self, row: Row) -> None:
        """Add a finished epoch's row, with the time so far, to the history and the logs."""
        row["seconds"] = self.state.seconds
        self.state.history.append(row)
        self.state.sums = {}
        self.tell(lambda logger: logger.epoch(row))

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
            DivergedError: a step was not finite, so nothing is worth saving.
            WriteError: it cannot be written; the previous checkpoint remains.
        """
        self.check()
        checkpoint = take(self.state)
        if self.exact is not None:
            checkpoint.state["exact"] = self.exact
        self.runtime.ranks.by_first(partial(self.write, checkpoint))

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint of this step."""
        with writing(self.folder):
            save_checkpoint(self.folder, self.state.step, checkpoint)
