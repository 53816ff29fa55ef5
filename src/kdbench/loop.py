"""The one training loop: epochs, evaluation, checkpoints, resume."""

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from kdbench.checkpoint import load_checkpoint, save_checkpoint
from kdbench.console import Console, Display
from kdbench.data.base import Dataset
from kdbench.data.views import TrainImages, epoch_plan
from kdbench.errors import KdbenchError
from kdbench.log import RunLogger
from kdbench.methods.base import Method
from kdbench.metrics import evaluate
from kdbench.optim import Optimizer, Schedule
from kdbench.runtime import Runtime
from kdbench.seeds import derive
from kdbench.snapshot import Moving, Position, Row, restore, take
from kdbench.step import train_step
from kdbench.types import Batch

READS_PER_EPOCH = 10  # how often the progress display waits for the device


class DivergedError(KdbenchError):
    """A loss that is not finite; the last checkpoint before it is kept."""


class Interrupted(KeyboardInterrupt):
    """Stopped at a step boundary, with a checkpoint written."""


@dataclass
class Run:
    """One training: the parts that the loop moves, and where it leaves its files."""

    run_id: str
    seed: int
    student: nn.Module
    method: Method
    teachers: list[nn.Module]
    dataset: Dataset
    schedule: Schedule
    runtime: Runtime
    folder: Path


class Trainer:
    """Trains one run from wherever its folder says it is."""

    def __init__(self, run: Run, console: Console, loggers: Sequence[RunLogger]) -> None:
        self.run, self.console, self.loggers = run, console, loggers
        self.device = run.runtime.device
        for module in (run.student, run.method):
            module.to(self.device, memory_format=run.runtime.memory_format)
        generator = torch.Generator(self.device).manual_seed(derive(run.seed, "draw"))
        optimizer = Optimizer(run.schedule, run.student, run.method)
        self.moving = Moving(run.student, run.method, optimizer, generator)
        data = run.dataset
        self.images = TrainImages(data.train.images, data.views, data.mean, data.std, self.device)
        self.labels = run.dataset.train.labels.to(self.device)
        self.steps_per_epoch = math.ceil(len(self.labels) / run.schedule.batch_size)
        self.position = Position()
        torch.manual_seed(derive(run.seed, "train"))

    def train(self) -> Position:
        """Train to the end of the schedule.

        Raises:
            Interrupted: on Ctrl-C or SIGTERM, after a checkpoint at the next step boundary.
            DivergedError: an epoch's loss is not finite.
        """
        self.resume()
        for logger in self.loggers:
            logger.start(self.position.history)
        epochs = self.run.schedule.epochs
        shown = self.console.display(self.run.run_id, epochs, len(self.labels))
        with shown as display, stop_requests() as stop:
            while len(self.position.history) < epochs:
                self.train_epoch(display, stop)
        return self.position

    def train_epoch(self, display: Display, stop: threading.Event) -> None:
        """Finish the running epoch, score it, and write a checkpoint where one is due."""
        started, position = time.monotonic(), self.position
        epoch = len(position.history) + 1
        batches = self.batches(epoch)
        self.moving.optimizer.start_epoch(epoch)
        self.run.student.train()
        read_every = max(1, self.steps_per_epoch // READS_PER_EPOCH)
        for batch in batches:
            sums = train_step(
                self.run.student,
                self.run.method,
                self.run.teachers,
                self.moving.optimizer,
                batch,
                self.moving.generator,
            )
            position.sums = {k: position.sums.get(k, 0) + v for k, v in sums.items()}
            position.step += 1
            done = position.step - (epoch - 1) * self.steps_per_epoch
            if done % read_every == 0:
                display.step(epoch, *self.running_means(done))
            if stop.is_set() and done < self.steps_per_epoch:
                self.stop(epoch, started)
        self.finish_epoch(epoch, started, display)
        if stop.is_set() and epoch < self.run.schedule.epochs:
            self.stop(epoch, time.monotonic())
        if epoch % self.run.runtime.checkpoint_epochs == 0 or epoch == self.run.schedule.epochs:
            self.save()

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The epoch's batches from the current step on; the last, short one is kept."""
        run, size = self.run, self.run.schedule.batch_size
        seed = derive(run.seed, "data")
        plan = epoch_plan(len(self.labels), run.dataset.views, seed, epoch)
        order, view = (part.to(self.device) for part in plan)
        epoch_tensor = torch.tensor(float(epoch), device=self.device)
        first = self.position.step - (epoch - 1) * self.steps_per_epoch
        for step in range(first, self.steps_per_epoch):
            index = order[step * size : (step + 1) * size]
            images = self.images.batch(index, view[index])
            images = images.to(memory_format=run.runtime.memory_format)
            yield Batch(images, self.labels[index], index, epoch_tensor)

    def running_means(self, done: int) -> tuple[int, float, float]:
        """Images seen in the epoch so far, their mean loss, and top-1 on them in percent."""
        count = min(done * self.run.schedule.batch_size, len(self.labels))
        loss, hits = self.position.sums["loss"].item(), self.position.sums["hits"].item()
        return count, loss / count, 100 * hits / count

    def finish_epoch(self, epoch: int, started: float, display: Display) -> None:
        """Score the epoch and add its row; a run whose loss is not finite ends here."""
        position, run = self.position, self.run
        count = len(self.labels)
        means = {name: value.item() / count for name, value in position.sums.items()}
        row: Row = {"epoch": epoch, "lr": self.moving.optimizer.sgd.param_groups[0]["lr"]}
        row |= {f"train/{name}": value for name, value in means.items() if name != "hits"}
        row["train/top1"] = 100 * means["hits"]
        for name, split in (("val", run.dataset.val), ("test", run.dataset.test)):
            if split is not None:
                scores = evaluate(
                    run.student, split, run.dataset, self.device, run.runtime.memory_format
                )
                row |= {f"{name}/{key}": getattr(scores, key) for key in ("top1", "top5", "loss")}
        if not all(math.isfinite(value) for value in row.values()):
            raise DivergedError(
                f"{run.run_id} diverged in epoch {epoch}: its loss is not finite; "
                "lower schedule.lr or the method's weights"
            )
        position.seconds += time.monotonic() - started
        row["seconds"] = position.seconds
        position.history.append(row)
        position.sums = {}
        for logger in self.loggers:
            logger.epoch(row)
        display.epoch(row)

    def stop(self, epoch: int, started: float) -> None:
        """Leave at a step boundary, resumable.

        Raises:
            Interrupted: always.
        """
        self.position.seconds += time.monotonic() - started
        self.save()
        raise Interrupted(
            f"stopped in epoch {epoch} after step {self.position.step}; "
            "the same command goes on from there"
        )

    def save(self) -> None:
        """Write a checkpoint."""
        checkpoint = take(self.moving, self.position)
        save_checkpoint(self.run.folder, self.position.step, checkpoint)

    def resume(self) -> None:
        """Go to the newest checkpoint that holds; from the start where there is none."""
        checkpoint, damaged = load_checkpoint(self.run.folder)
        for path in damaged:
            self.console.message(f"{path} is damaged and is not used")
            path.unlink()
        if checkpoint is not None:
            self.position = restore(self.moving, checkpoint)
            self.console.message(f"{self.run.run_id}: going on after step {self.position.step}")


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second Ctrl-C stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(signum: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {
        number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
