"""The training loop: runs train side by side on one stream of batches and one teacher forward."""

import itertools
import math
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from kdbench.data.augmentation.strong import StrongView, stack_views
from kdbench.data.augmentation.views import TrainImages, epoch_plan
from kdbench.data.base import Split
from kdbench.data.streaming.streamed import StreamedImages
from kdbench.errors import Interrupted, KdbenchError, RankError
from kdbench.records.failures import tell_failure
from kdbench.seeds import derive
from kdbench.system.console import Console, Display
from kdbench.system.signals import stop_requests
from kdbench.training.member import Member
from kdbench.training.micro_batches import Cutting, Part
from kdbench.training.snapshot import TrainState
from kdbench.types import Batch, Output

READS_PER_EPOCH = 10  # times that the progress display waits for the device


class TeacherOutputs(Protocol):
    """The source of the teachers' outputs; `kdbench.teachers.outputs` has the implementations."""

    def start_epoch(self, view: Tensor, stopped: Callable[[], bool]) -> None:
        """Prepare the outputs on every image's view [N]; may return early once `stopped()`."""

    def by_views(self, batch: Batch) -> dict[int, tuple[Output, ...]]:
        """Return all teachers' outputs on the first view of a batch, the first two, ... all."""


Views = dict[int, Batch]  # the same images by the number of their views


class Step(NamedTuple):
    """The batch of one step."""

    images: Tensor  # [B] indices of the images of all ranks, on the device
    parts: Iterator[tuple[Part, Views]]  # this rank's micro-batches, made lazily


class Clock:
    """A clock of the wall and CPU time since it was made or last charged."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.monotonic(), time.process_time()

    def charge(self, states: Sequence[TrainState]) -> None:
        """Add the time to runs that share it, and start anew."""
        wall, cpu = time.monotonic(), time.process_time()
        for state in states:
            state.seconds += wall - self.wall
            state.seconds_share += (wall - self.wall) / len(states)
            state.cpu_seconds += (cpu - self.cpu) / len(states)
        self.wall, self.cpu = wall, cpu


class Cohort:
    """Members at one step of one schedule, on the same data, seed and teachers.

    Each ends with the bits that it would have alone. One that fails leaves the others untouched;
    its exception is kept in `Member.error`. A single run is a cohort of one.
    """

    def __init__(
        self,
        members: Sequence[Member],
        outputs: TeacherOutputs,
        images: TrainImages | StreamedImages,
        console: Console,
    ) -> None:
        self.members, self.outputs = members, outputs
        self.images, self.console = images, console
        self.shared = members[0]  # has what all members share
        self.device = self.shared.runtime.device
        self.labels = self.shared.dataset.train.labels.to(self.device)
        splits = {name: s for name, s in self.shared.dataset.splits.items() if name != "train"}
        self.scored = {name: at_hand(split, self.device) for name, split in splits.items()}
        schedule, self.ranks = self.shared.schedule, self.shared.runtime.ranks
        self.steps_per_epoch = math.ceil(len(self.labels) / schedule.batch_size)
        sizes = schedule.batch_size, len(self.labels)
        self.cutting = Cutting(schedule.micro_batches, *sizes, self.ranks)
        self.step = members[0].state.step
        self.epochs_done = len(members[0].state.history)

    @property
    def alive(self) -> list[Member]:
        """The members that still train."""
        return [member for member in self.members if member.error is None]

    def train(self) -> None:
        """Train all members to the end of the schedule, or to their own failure.

        Raises:
            Interrupted: on Ctrl-C, SIGTERM or SIGUSR1, after checkpoints at the next step boundary.
            RankError: something went wrong on one rank and not on the others.
        """
        for member in self.members:
            member.companions = len(self.members) - 1
        self.each(Member.start)
        epochs = self.shared.schedule.epochs
        names = [member.run_id for member in self.members]
        shown = self.console.display(names, epochs, len(self.labels))
        with shown as display, stop_requests() as stop, self.ranks.own_errors():
            while self.epochs_done < epochs and self.alive:
                self.train_epoch(display, stop)

    def train_epoch(self, display: Display, stop: threading.Event) -> None:
        """Finish the running epoch, score it, and write checkpoints where they are due."""
        clock, epoch = Clock(), self.epochs_done + 1
        self.each(lambda member: member.start_epoch(epoch))
        read_every = max(1, self.steps_per_epoch // READS_PER_EPOCH)
        for step in self.steps(epoch, stop):
            if self.ranks.any(stop.is_set()):
                self.stop(epoch, clock)
            else:
                self.train_step(step)
            done = self.step - (epoch - 1) * self.steps_per_epoch
            if done % read_every == 0:
                self.each(Member.check)
            if not self.alive:
                return
            if done % read_every == 0:
                display.step(epoch, *self.running_means(done))
            if self.saves_after_step() and done < self.steps_per_epoch:
                self.save(clock)
        self.finish_epoch(epoch, clock, display)
        last = epoch == self.shared.schedule.epochs
        if self.ranks.any(stop.is_set()) and not last:
            self.stop(epoch, clock)
        elif epoch % self.shared.runtime.checkpoint_epochs == 0 or last or self.saves_after_step():
            self.each(Member.save)

    def saves_after_step(self) -> bool:
        """Return whether `runtime.checkpoint_steps` asks for checkpoints after this step."""
        every = self.shared.runtime.checkpoint_steps
        return every is not None and self.step % every == 0

    def steps(self, epoch: int, stop: threading.Event) -> Iterator[Step]:
        """Yield the epoch's steps from the current one on; the last, short batch is kept."""
        shared, size = self.shared, self.shared.schedule.batch_size
        seed = derive(shared.seed, "data")
        order, view = epoch_plan(len(self.labels), shared.dataset.views, seed, epoch)
        self.outputs.start_epoch(view, stop.is_set)
        epoch_tensor = torch.tensor(float(epoch), device=self.device)
        first = self.step - (epoch - 1) * self.steps_per_epoch
        wanted = {member.method.views for member in self.alive}
        strong = StrongView(self.images, seed, epoch) if max(wanted) > 1 else None

        def views_of(index: Tensor, cut: Tensor) -> Views:
            views = [cut]
            if strong is not None:
                views.append(strong.batch(index))
            stacks = {n: stack_views(views[:n], shared.runtime.memory_format) for n in wanted}
            return {n: Batch(x, self.labels[index], index, epoch_tensor) for n, x in stacks.items()}

        images = self.images.epoch(order, view, size, first, self.cutting.cut)
        for index in order.to(self.device).split(size)[first:]:
            places = self.cutting.parts(len(index))
            found = itertools.islice(images, len(places))
            parts = ((part, views_of(*one)) for part, one in zip(places, found, strict=True))
            yield Step(index, parts)

    def train_step(self, step: Step) -> None:
        """Update every member once."""
        cut = self.cutting.count > 1
        if cut:
            self.each(lambda member: member.start_parts(len(step.images)))
        for part, batches in step.parts:
            self.compute(part if cut else None, batches)
        if cut:
            self.each(lambda member: member.finish_parts(step.images))
        self.step += 1

    def compute(self, part: Part | None, batches: Views) -> None:
        """Let every member step on a whole batch (no `part`), or add a micro-batch's gradients."""
        outputs = self.outputs.by_views(batches[max(batches)])

        def act(member: Member) -> None:
            views = member.method.views
            if part is None:
                member.step(batches[views], outputs[views])
            else:
                member.add_part(part, batches[views], outputs[views])

        self.each(act)

    def each(self, act: Callable[[Member], None]) -> None:
        """Let every member act; a member that raises leaves the cohort."""
        for member in self.alive:
            try:
                act(member)
            except RankError:
                raise
            except Exception as error:
                if self.ranks.count > 1 and not isinstance(error, KdbenchError):
                    raise  # the error may be on this rank alone
                traceback.clear_frames(error.__traceback__)  # frees memory that others need
                member.error = error
                if len(self.members) > 1:
                    self.console.message(f"{member.run_id} failed: {error}")
                    if self.ranks.first:
                        tell_failure(member.folder, error)

    def running_means(self, done: int) -> tuple[int, float, float]:
        """Return the images seen this epoch, and the members' mean loss and top-1 in percent."""
        count = min(done * self.shared.schedule.batch_size, len(self.labels))
        sums = [member.state.sums for member in self.alive]
        loss, hits = (sum(s[key].item() for s in sums) / len(sums) for key in ("loss", "hits"))
        return count, loss / count, 100 * hits / count

    def finish_epoch(self, epoch: int, clock: Clock, display: Display) -> None:
        """Score the epoch and add every member's row."""
        rows = {}

        def score(member: Member) -> None:
            rows[member.run_id] = member.finish_epoch(epoch, self.scored)

        def close(member: Member) -> None:
            member.close_epoch(rows[member.run_id])
            display.epoch(member.run_id, rows[member.run_id])

        self.each(score)
        clock.charge([member.state for member in self.alive])
        self.each(close)
        self.epochs_done += 1

    def save(self, clock: Clock) -> None:
        """Write checkpoints that include the time so far."""
        clock.charge([member.state for member in self.alive])
        self.each(Member.save)

    def stop(self, epoch: int, clock: Clock) -> None:
        """Stop at a step boundary, resumably; return only if no member could write a checkpoint.

        Raises:
            Interrupted: there are checkpoints.
        """
        self.save(clock)
        if self.alive:
            raise Interrupted(
                f"stopped in epoch {epoch} after step {self.step}; the same command goes on from "
                "there"
            )


def at_hand(split: Split, device: torch.device) -> Split:
    """Return a split for the scores of every epoch, on the device if it is in memory at all."""
    images = split.images.to(device) if isinstance(split.images, Tensor) else split.images
    return Split(images, split.labels.to(device))
