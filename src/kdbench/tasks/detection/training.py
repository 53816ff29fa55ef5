"""A detector's training loop: steps, scores, stops and checkpoints of one run."""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kdbench.errors import DivergedError, Interrupted, writing
from kdbench.methods.base import Method
from kdbench.records.checkpoint import newest_sound, save_checkpoint
from kdbench.records.reproducibility import check_exact, exact_facts
from kdbench.seeds import derive
from kdbench.system.console import Console
from kdbench.system.precision import arithmetic
from kdbench.system.runtime import Runtime
from kdbench.system.signals import stop_requests
from kdbench.tasks.detection.batches import DetectionBatch, steps_per_epoch, train_batches
from kdbench.tasks.detection.coco import DetectionData
from kdbench.tasks.detection.networks import Detector
from kdbench.tasks.detection.schedule import DetectionSchedule
from kdbench.tasks.detection.scores import evaluate
from kdbench.tasks.detection.step import losses_and_sums
from kdbench.tracking.run_logger import RunLogger
from kdbench.training.cohort import Clock
from kdbench.training.optimizer import Optimizer
from kdbench.training.snapshot import (
    Row,
    TrainState,
    own_randomness,
    restore,
    start_randomness,
    take,
)

READS = 100  # times in a run that the loop waits for the device and reports its progress


@dataclass
class DetectionRun:
    """One training run: what it trains, on which data and schedule, and its folder."""

    run_id: str
    seed: int
    student: Detector
    method: Method
    teachers: tuple[Detector, ...]
    data: DetectionData
    schedule: DetectionSchedule
    runtime: Runtime
    folder: Path


class Training:
    """A run on its device; it resumes from its newest checkpoint."""

    def __init__(self, run: DetectionRun, console: Console, loggers: Sequence[RunLogger]) -> None:
        self.run, self.console, self.loggers = run, console, loggers
        device = run.runtime.device
        for module in (run.student, run.method):
            module.to(device).to(memory_format=run.runtime.memory_format)
        optimizer = Optimizer(run.schedule.sgd(), run.student, run.method)
        generator = torch.Generator(device).manual_seed(derive(run.seed, "draw"))
        random = start_randomness(derive(run.seed, "train"), device)
        self.state = TrainState(run.student, run.method, optimizer, generator, random)
        self.epoch_steps = steps_per_epoch(run.data, run.schedule.batch_size)
        self.exact = exact_facts(run.runtime)

    def resume(self) -> None:
        """Restore the newest valid checkpoint; start from the beginning where there is none.

        Raises:
            ConfigError: the checkpoint was written under conditions that `runtime.exact` forbids.
            KdbenchError: it holds another state.
        """
        checkpoint = newest_sound(self.run.folder, self.console.message)
        if checkpoint is not None:
            check_exact(self.run.folder, checkpoint.state.pop("exact", None), self.exact)
            restore(self.state, checkpoint, self.run.folder)
            self.state.optimizer.guard.start(self.state.step)
            self.console.message(f"{self.run.run_id}: going on after step {self.state.step}")

    def train(self) -> None:
        """Train to the end of the schedule.

        Raises:
            Interrupted: on Ctrl-C, SIGTERM or SIGUSR1, with a checkpoint of the last step.
            DivergedError: a loss, a gradient or a score is not finite.
            KdbenchError: an image cannot be read, or a file cannot be written.
        """
        self.tell(lambda logger: logger.start(self.state.history))
        run, clock = self.run, Clock()
        size, seed = run.schedule.batch_size, derive(run.seed, "data")
        bounds = self.state.step, run.schedule.steps
        batches = train_batches(run.data, size, seed, *bounds, run.runtime.device)
        run.student.train()
        with stop_requests() as stop:
            for batch in batches:
                self.stop_if_asked(stop, clock)
                self.step(batch)
                self.after_step(clock)

    def step(self, batch: DetectionBatch) -> None:
        """Update the student once."""
        run, state = self.run, self.state
        state.optimizer.set_rates(run.schedule.factor(state.step))
        layout = run.runtime.memory_format
        batch.images.tensors = batch.images.tensors.contiguous(memory_format=layout)
        with own_randomness(state), arithmetic(run.schedule.precision):
            losses, sums = losses_and_sums(run.student, run.method, run.teachers, batch)
            state.optimizer.update(losses)
        state.sums = {key: state.sums.get(key, 0) + value for key, value in sums.items()}
        state.step += 1

    def after_step(self, clock: Clock) -> None:
        """Check the run, score it and write a checkpoint, each where it is due."""
        schedule, runtime, step = self.run.schedule, self.run.runtime, self.state.step
        last = step == schedule.steps
        if step % max(1, schedule.steps // READS) == 0:
            self.check()
            loss = self.means()["loss"]
            self.console.message(f"  step {step}/{schedule.steps}  loss {loss:.3f}")
        if step % schedule.score_steps == 0 or last:
            self.close_row(clock)
        every = runtime.checkpoint_steps
        epochs_done, within = divmod(step, self.epoch_steps)
        due = within == 0 and epochs_done % runtime.checkpoint_epochs == 0
        if due or last or (every is not None and step % every == 0):
            self.save(clock)

    def means(self) -> dict[str, float]:
        """Return the means over the images seen since the last row."""
        sums = {name: float(value) for name, value in self.state.sums.items()}
        count = sums.pop("images")
        return {name: value / count for name, value in sums.items()}

    def close_row(self, clock: Clock) -> None:
        """Score the student and add a row to the history and the logs.

        Raises:
            DivergedError: a step, or a mean, is not finite.
        """
        self.check()
        run, state = self.run, self.state
        epoch = state.step / self.epoch_steps
        row: Row = {"step": state.step, "epoch": epoch, "lr": self.state.optimizer.lr}
        for name, value in self.means().items():
            row[name if name.startswith("method/") else f"train/{name}"] = value
        where = run.runtime.device, run.runtime.memory_format
        scores = evaluate(run.student, run.data, *where, run.schedule.precision)
        row |= {f"test/{name}": v for name, v in scores._asdict().items() if v is not None}
        row.setdefault("test/ap", 0.0)  # for test images without objects
        odd = [name for name, value in row.items() if not math.isfinite(value)]
        if odd:
            raise self.diverged(state.step, f"its {odd[0]}")
        clock.charge([state])
        row["seconds"] = state.seconds
        state.history.append(row)
        state.sums = {}
        self.tell(lambda logger: logger.epoch(row))
        self.console.message(
            f"  step {state.step}/{run.schedule.steps}  loss {row['train/loss']:.3f}  "
            f"AP {row['test/ap']:.2f}  {row['seconds']:.0f} s"
        )

    def check(self) -> None:
        """Wait for the device and check that all steps so far were finite.

        Raises:
            DivergedError: a step had a loss or a gradient that is not finite.
        """
        step = self.state.optimizer.guard.read()
        if step is not None:
            raise self.diverged(step, f"the loss or a gradient of step {step}")

    def diverged(self, step: int, what: str) -> DivergedError:
        """Return the error for numbers that are not finite."""
        epoch = (step - 1) // self.epoch_steps + 1
        return DivergedError(self.run.run_id, epoch, step, what)

    def save(self, clock: Clock) -> None:
        """Write a checkpoint that includes the time so far.

        Raises:
            DivergedError: a step was not finite, so nothing is worth saving.
            WriteError: it cannot be written; the previous checkpoint remains.
        """
        self.check()
        clock.charge([self.state])
        checkpoint = take(self.state)
        if self.exact is not None:
            checkpoint.state["exact"] = self.exact
        with writing(self.run.folder):
            save_checkpoint(self.run.folder, self.state.step, checkpoint)

    def stop_if_asked(self, stop: threading.Event, clock: Clock) -> None:
        """Stop at a step boundary, resumably, if a signal has come.

        Raises:
            Interrupted: there is a checkpoint.
        """
        if stop.is_set():
            self.save(clock)
            raise Interrupted(
                f"stopped after step {self.state.step}; the same command goes on from there"
            )

    def tell(self, news: Callable[[RunLogger], None]) -> None:
        """Tell the loggers."""
        for logger in self.loggers:
            news(logger)
