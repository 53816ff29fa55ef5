"""One run, as a member of the cohort that trains it: its step, its scores, its files."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import DivergedError, KdbenchError, writing
from kdbench.methods.base import Method
from kdbench.parallel.micro_batches import Part
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
from kdbench.system.cuda_graphs import Recorder, Replayed
from kdbench.system.precision import arithmetic
from kdbench.tasks.task import Ending, LoadedTeacher, Row, Sums, Task
from kdbench.tracking.run_logger import RunLogger
from kdbench.training.accumulation import Accumulation
from kdbench.training.optimizer import Optimizer
from kdbench.training.pace import AnySchedule, Pace, optimizer_settings
from kdbench.training.recorded_step import compiled_parts, recorded_step
from kdbench.training.snapshot import (
    TrainState,
    own_randomness,
    restore,
    start_randomness,
    take,
)
from kdbench.training.step import train_step
from kdbench.types import Output


class Member:
    """What is trained: a run on its device, with its step, its scores and its files.

    `state` holds all that its steps change; the rest is settled from its start.
    """

    def __init__(
        self,
        run_id: str,
        seed: int,
        student: nn.Module,
        method: Method,
        task: Task,
        schedule: AnySchedule,
        folder: Path,
        console: Console,
        loggers: Sequence[RunLogger],
    ) -> None:
        self.run_id, self.seed, self.folder = run_id, seed, folder
        self.method, self.task, self.schedule, self.runtime = method, task, schedule, task.runtime
        self.console, self.loggers = console, loggers
        self.pace = Pace(schedule, task.data.images)
        device, layout = self.runtime.device, self.runtime.memory_format
        for module in (student, method):
            module.to(device).to(memory_format=layout)
        generator = torch.Generator(device).manual_seed(derive(seed, "draw"))
        optimizer = Optimizer(optimizer_settings(schedule), student, method)
        random = start_randomness(derive(seed, "train"), device)
        self.state = TrainState(student, method, optimizer, generator, random)
        self.network = task.network(student)
        self.recorder: Recorder | None = None  # of the stream on which its steps run
        self.exact = exact_facts(self.runtime)
        self.error: Exception | None = None  # the reason for leaving its cohort
        self.companions = 0  # other runs of its cohort
        self.fused: int | None = None  # students that step as one with its own
        self.infinite_teachers: Callable[[], list[str]] = list  # names those with infinite outputs

    @cached_property
    def replayed(self) -> Replayed | None:
        """The step as a CUDA graph, where the device, task and schedule allow one."""
        what = self.state, self.network, self.task, self.schedule
        step = recorded_step(*what, self.pace.steps, self.run_id, self.console.message)
        self.recorder = None if step is None else step.recorder
        return step

    @cached_property
    def accumulation(self) -> Accumulation:
        """The step in micro-batches."""
        what = self.method, self.network, self.task, self.schedule
        student, losses_of = compiled_parts(*what, self.pace.steps, self.console.message)
        given = self.runtime.ranks, losses_of, self.runtime.overlaps
        return Accumulation(student, self.state, self.seed, *given)

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

    def start_row(self) -> None:
        """Prepare the steps up to the next score."""
        self.pace.start_row(self.state.optimizer, self.state.step)
        self.state.student.train()

    def step(self, batch: Any, teachers: Any) -> None:
        """Update the student once, without waiting for the device.

        On a GPU the update runs concurrently with later work, until the next `check`.
        """
        aside = self.replayed.recorder.aside() if self.replayed is not None else nullcontext()
        with aside, arithmetic(self.schedule.precision):
            self._step(batch, teachers)

    def _step(self, batch: Any, teachers: Any) -> None:
        state, replayed = self.state, self.replayed
        self.pace.start_step(state.optimizer, state.step)
        if replayed is not None and replayed.recordings:  # it draws no random numbers
            self.count_step(self._replay(replayed, batch, teachers))
            return
        before = state.random
        with own_randomness(state):
            if replayed is not None:
                sums = self._replay(replayed, batch, teachers)
            else:
                parts = state.optimizer, batch, state.generator, self.task.losses
                sums = train_step(self.network, self.method, teachers, *parts)
        drew = any(not torch.equal(state.random[key], before[key]) for key in before)
        if replayed is not None and not replayed.refused and drew:
            replayed.refuse("its forward pass draws random numbers")
        self.count_step(sums)

    def _replay(self, replayed: Replayed, batch: Any, teachers: Any) -> Sums:
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
        self.pace.start_step(self.state.optimizer, self.state.step)
        self.accumulation.start(self.state.step, size)

    def add_part(self, part: Part, batch: Any, teachers: Any) -> None:
        """Compute one micro-batch of the step; no parameter moves yet."""
        with arithmetic(self.schedule.precision):
            self.accumulation.add(part, batch, teachers)

    def finish_parts(self, index: Tensor, stop: bool) -> None:
        """End the step on the images at `index` [B] with one update from all micro-batches."""
        self.count_step(self.accumulation.finish(index, stop))

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
        if self.recorder is not None:
            self.recorder.join()
        step = self.state.optimizer.guard.read()
        if step is not None:
            raise self.diverged(step, f"the loss or a gradient of step {step}")

    def means(self) -> Row:
        """Return the means over the images since the last row; waits for the device."""
        step = self.state.step
        count = self.pace.seen(step) - self.pace.seen(self.pace.row_start(step))
        return {name: value.item() / count for name, value in self.state.sums.items()}

    def scored(self) -> list[nn.Module]:
        """Return what is scored: the student, and the moving average of its weights, if any."""
        average = self.state.optimizer.ema
        return [self.network] + ([] if average is None else [self.task.network(average.module)])

    def score_row(self, scores: Sequence[Row | Exception]) -> Row:
        """Return the row of a step, still without "seconds".

        The average's scores on a split are those of SPLIT_ema.

        Args:
            scores: of each network in `scored`.

        Raises:
            DivergedError: a score is not finite.
            Exception: a network could not be scored.
        """
        step, means = self.state.step, self.means()
        trained = self.task.training_scores(means)
        row: Row = {**self.pace.place(step), "lr": self.state.optimizer.lr}
        for name, value in means.items():
            row[name if name.startswith("method/") else f"train/{name}"] = value
        row |= trained
        for found, split in zip(scores, ("/", "_ema/"), strict=False):
            if isinstance(found, Exception):
                raise found
            row |= {key.replace("/", split, 1): value for key, value in found.items()}
        odd = [name for name, value in row.items() if not math.isfinite(value)]
        if odd:
            raise self.diverged(step, f"its {odd[0]}")
        return row

    def diverged(self, step: int, what: str) -> DivergedError:
        """Return the error for numbers that are not finite, which names their cause."""
        epoch = self.pace.epoch_of(step)
        return DivergedError(self.run_id, epoch, step, what, self.infinite_teachers())

    def conclude(self, teachers: Mapping[str, LoadedTeacher]) -> Ending:
        """Measure the run at its end; its teachers are named as records name them."""
        return self.task.conclude(self.network, self.state.student, self.state.history, teachers)

    def close_row(self, row: Row) -> None:
        """Add a row, with the time so far, to the history and the logs."""
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
