"""One run, as a member of the cohort that trains it: its step, its scores, its files."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
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
    Moving,
    Position,
    Row,
    own_randomness,
    restore,
    start_randomness,
    take,
)
from kdbench.training.step import Sums, train_step, update
from kdbench.types import Batch, Network, Output


@dataclass
class Run:
    """One training run: what it trains, on which data and schedule, and its folder."""

    run_id: str
    seed: int
    student: nn.Module
    method: Method
    dataset: Dataset
    schedule: Schedule
    runtime: Runtime
    folder: Path


class Member:
    """A run on its device, with its own optimizer, randomness, evaluation and checkpoints."""

    def __init__(self, run: Run, console: Console, loggers: Sequence[RunLogger]) -> None:
        self.run, self.console, self.loggers = run, console, loggers
        device = run.runtime.device
        for module in (run.student, run.method):
            module.to(device).to(memory_format=run.runtime.memory_format)
        generator = torch.Generator(device).manual_seed(derive(run.seed, "draw"))
        optimizer = Optimizer(run.schedule, run.student, run.method)
        random = start_randomness(derive(run.seed, "train"), device)
        self.moving = Moving(run.student, run.method, optimizer, generator, random)
        self.student = at_precision(run.student, run.schedule.precision)
        self.accumulation = Accumulation(self.student, self.moving, run.seed, run.runtime.ranks)
        recorder = recorder_for(run.runtime) if run.schedule.micro_batches == 1 else None
        self.position = Position()
        self.steps_per_epoch = math.ceil(len(run.dataset.train.labels) / run.schedule.batch_size)
        self.trained: Network = self.student if recorder is None else self.ready_student()
        whole = partial(update, self.trained, run.method, optimizer)
        self.replayed = Replayed(whole, recorder, run.run_id, console.message) if recorder else None
        self.exact = exact_facts(run.runtime)
        self.error: Exception | None = None  # the reason for leaving its cohort
        self.companions = 0  # other runs of its cohort
        self.infinite_teachers: Callable[[], list[str]] = list  # names those with infinite outputs

    def ready_student(self) -> Network:
        """Return the student as training steps call it."""
        run, size = self.run, self.run.schedule.batch_size
        shape = torch.Size((size, *run.dataset.train.images.shape[1:]))
        precision, steps = run.schedule.precision, self.steps_per_epoch * run.schedule.epochs
        settings = precision, run.runtime, steps, self.console.message
        return for_training(self.student, run.method.taps, shape, *settings)

    def resume(self) -> None:
        """Restore the newest valid checkpoint; start from the beginning where there is none.

        Raises:
            ConfigError: the checkpoint was written under conditions that `runtime.exact` forbids.
        """
        checkpoint = self.newest_checkpoint()
        if checkpoint is not None:
            check_exact(self.run.folder, checkpoint.state.pop("exact", None), self.exact)
            self.position = restore(self.moving, checkpoint, self.run.folder)
            self.moving.optimizer.guard.start(self.position.step)
            self.console.message(f"{self.run.run_id}: going on after step {self.position.step}")

    def newest_checkpoint(self) -> Checkpoint | None:
        """Return the newest valid checkpoint that the first rank finds; remove damaged ones.

        Raises:
            KdbenchError: another rank cannot read it.
        """
        ranks, folder = self.run.runtime.ranks, self.run.folder
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
        path = checkpoint_path(self.run.folder, step)
        checkpoint = load_tensors(path)
        if checkpoint is None:
            raise KdbenchError(
                f"rank {self.run.runtime.ranks.number} cannot read {path}: set runs_dir to a "
                "folder that all ranks share"
            )
        return checkpoint

    def start(self) -> None:
        """Tell the loggers that training starts or goes on."""
        self.tell(lambda logger: logger.start(self.position.history))

    def tell(self, news: Callable[[RunLogger], None]) -> None:
        """Tell the loggers; only the first rank has any."""

        def act() -> None:
            for logger in self.loggers:
                news(logger)

        self.run.runtime.ranks.by_first(act)

    def start_epoch(self, epoch: int) -> None:
        """Prepare the steps of `epoch` (from 1)."""
        self.moving.optimizer.start_epoch(epoch)
        self.student.train()

    def step(self, batch: Batch, teachers: tuple[Output, ...]) -> None:
        """Update the student once, without waiting for the device.

        On a GPU the update runs concurrently with later work, until the next `check`.
        """
        aside = self.replayed.recorder.aside() if self.replayed is not None else nullcontext()
        with aside, arithmetic(self.run.schedule.precision):
            self._step(batch, teachers)

    def _step(self, batch: Batch, teachers: tuple[Output, ...]) -> None:
        moving, replayed = self.moving, self.replayed
        moving.optimizer.warm_up(self.position.step, self.steps_per_epoch)
        if replayed is not None and replayed.recordings:  # it draws no random numbers
            self.count_step(self._replay(replayed, batch, teachers))
            return
        before = moving.random
        with own_randomness(moving):
            if replayed is not None:
                sums = self._replay(replayed, batch, teachers)
            else:
                parts = moving.optimizer, batch, moving.generator
                sums = train_step(self.student, self.run.method, teachers, *parts)
        drew = any(not torch.equal(moving.random[key], before[key]) for key in before)
        if replayed is not None and not replayed.refused and drew:
            replayed.refuse("its forward pass draws random numbers")
        self.count_step(sums)

    def _replay(self, replayed: Replayed, batch: Batch, teachers: tuple[Output, ...]) -> Sums:
        """Do `train_step` with everything after the draw as one recording, where possible."""
        method = self.run.method
        batch = batch._replace(drawn=method.draw(batch, self.moving.generator))
        read = tuple(  # taps that the method does not read need not be copied
            Output(logits, {tap: taps[tap] for tap in method.taps})
            for logits, taps in (teachers if method.num_teachers != 0 else ())
        )
        return replayed(batch, read)

    def start_parts(self, size: int) -> None:
        """Begin a step on a batch of `size` images, in micro-batches."""
        self.moving.optimizer.warm_up(self.position.step, self.steps_per_epoch)
        self.accumulation.start(self.position.step, size)

    def add_part(self, part: Part, batch: Batch, teachers: tuple[Output, ...]) -> None:
        """Compute one micro-batch of the step; no parameter moves yet."""
        with arithmetic(self.run.schedule.precision):
            self.accumulation.add(part, batch, teachers)

    def finish_parts(self, index: Tensor) -> None:
        """End the step on the images at `index` [B] with one update from all micro-batches."""
        self.count_step(self.accumulation.finish(index))

    def count_step(self, sums: Sums) -> None:
        """Count a step that is done, and add its sums."""
        position = self.position
        if position.sums:  # on a GPU, one kernel adds them all
            torch._foreach_add_([position.sums[key] for key in sums], list(sums.values()))
        else:
            position.sums = {key: value.clone() for key, value in sums.items()}
        position.step += 1

    def check(self) -> None:
        """Wait for the device and check that all steps so far were finite.

        Raises:
            DivergedError: a step had a loss or a gradient that is not finite.
        """
        if self.replayed is not None:
            self.replayed.recorder.join()
        step = self.moving.optimizer.guard.read()
        if step is not None:
            what = f"the loss or a gradient of step {step}"
            raise self.diverged(len(self.position.history) + 1, step, what)

    def finish_epoch(self, epoch: int, scored: Mapping[str, Split]) -> Row:
        """Score the epoch on splits by name and return its row, still without "seconds".

        Raises:
            DivergedError: a step, or a score, is not finite.
        """
        self.check()
        run = self.run
        count = len(run.dataset.train.labels)
        means = {name: value.item() / count for name, value in self.position.sums.items()}
        row: Row = {"epoch": epoch, "lr": self.moving.optimizer.lr}
        for name, value in means.items():
            if name != "hits":
                row[name if name.startswith("method/") else f"train/{name}"] = value
        row["train/top1"] = 100 * means["hits"]
        for name, split in scored.items():
            scores = self.score(split)
            row |= {f"{name}/{key}": getattr(scores, key) for key in ("top1", "top5", "loss")}
        odd = [name for name, value in row.items() if not math.isfinite(value)]
        if odd:
            raise self.diverged(epoch, self.position.step, f"its {odd[0]}")
        return row

    def diverged(self, epoch: int, step: int, what: str) -> DivergedError:
        """Return the error for numbers that are not finite, which names their cause."""
        return DivergedError(self.run.run_id, epoch, step, what, self.infinite_teachers())

    def score(self, split: Split) -> Scores:
        """Score the student on a split."""
        runtime = self.run.runtime
        where = runtime.device, runtime.memory_format, runtime.ranks
        return evaluate(self.student, split, self.run.dataset, *where, self.run.schedule.precision)

    def close_epoch(self, row: Row) -> None:
        """Add a finished epoch's row, with the time so far, to the history and the logs."""
        row["seconds"] = self.position.seconds
        self.position.history.append(row)
        self.position.sums = {}
        self.tell(lambda logger: logger.epoch(row))

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
            DivergedError: a step was not finite, so nothing is worth saving.
            WriteError: it cannot be written; the previous checkpoint remains.
        """
        self.check()
        checkpoint = take(self.moving, self.position)
        if self.exact is not None:
            checkpoint.state["exact"] = self.exact
        self.run.runtime.ranks.by_first(partial(self.write, checkpoint))

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint of this step."""
        with writing(self.run.folder):
            save_checkpoint(self.run.folder, self.position.step, checkpoint)
