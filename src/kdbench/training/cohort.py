"""The training loop: runs train side by side on one stream of batches and one teacher forward."""

import threading
import time
import traceback
from collections.abc import Callable, Sequence

from kdbench.errors import Interrupted, KdbenchError, RankError, first_line
from kdbench.parallel.micro_batches import Part
from kdbench.parallel.overlap import OnTheWay
from kdbench.records.failures import tell_failure
from kdbench.records.identity import short_names
from kdbench.system.console import Console, Display
from kdbench.system.signals import stop_requests
from kdbench.tasks.task import Batches, Inputs, Step, Sums
from kdbench.training.fused import Fused, fuse
from kdbench.training.member import Member
from kdbench.training.snapshot import TrainState

READS_PER_ROW = 10  # times between two scores that the progress display waits for the device


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

    def __init__(self, members: Sequence[Member], batches: Batches, console: Console) -> None:
        self.members, self.batches, self.console = members, batches, console
        first = members[0]  # has what all members share
        self.task, self.pace, self.runtime = first.task, first.pace, first.runtime
        self.ranks, self.step = self.runtime.ranks, first.state.step
        self.cut = first.schedule.micro_batches > 1
        self.stops: list[OnTheWay] = []  # of the last steps: how many ranks are to stop
        self.fused: list[Fused] | None = None if self.runtime.fused == "on" else []

    @property
    def alive(self) -> list[Member]:
        """The members that still train."""
        return [member for member in self.members if member.error is None]

    def alive_names(self) -> list[str]:
        """Return the names of the runs that still train."""
        return [member.run_id for member in self.alive]

    def train(self) -> None:
        """Train all members to the end of the schedule, or to their own failure.

        Raises:
            Interrupted: on Ctrl-C, SIGTERM or SIGUSR1, after checkpoints at the next step boundary.
            RankError: something went wrong on one rank and not on the others.
        """
        for member in self.members:
            member.companions = len(self.members) - 1
        self.each(Member.start)
        runs = short_names([member.run_id for member in self.members])
        about = self.pace, self.task.shown, self.task.headline
        with (
            stop_requests() as stop,  # first: a table that ends must not be interrupted
            self.console.display(runs, *about) as display,
            self.ranks.own_errors(),
        ):
            histories = {member.run_id: member.state.history for member in self.members}
            display.start(self.step, histories)
            while self.step < self.pace.steps and self.alive:
                self.train_row(display, stop)
            display.fail(self.alive_names())

    def train_row(self, display: Display, stop: threading.Event) -> None:
        """Train up to the next score, score, and write checkpoints where they are due."""
        clock, end = Clock(), self.pace.row_end(self.step)
        start = self.pace.row_start(end)
        display.start_row()
        self.each(Member.start_row)
        read_every = max(1, self.pace.row_steps // READS_PER_ROW)
        methods = [member.method for member in self.alive]
        for step in self.batches.steps(self.step, end, methods, stop.is_set):
            if self.is_stopped(stop):
                self.stop(clock)
            else:
                self.train_step(step, stop.is_set)
            display.step(self.step)
            reads = (self.step - start) % read_every == 0
            if reads:
                self.each(Member.check)
            if not self.alive:
                return
            if reads:
                display.read(self.running_loss)
            if self.is_saved() and self.step < end:
                self.save(clock)
        self.finish_row(clock, display)
        last = self.step == self.pace.steps
        if self.ranks.any(stop.is_set()) and not last:
            self.stop(clock)
        elif last or self.is_saved():
            self.each(Member.save)

    def is_saved(self) -> bool:
        """Return whether `runtime` asks for checkpoints after this step."""
        every = self.runtime.checkpoint_steps
        epochs = self.step % (self.runtime.checkpoint_epochs * self.pace.epoch_steps) == 0
        return epochs or (every is not None and self.step % every == 0)

    def is_stopped(self, stop: threading.Event) -> bool:
        """Return whether any rank is to stop, which all ranks find before the same step.

        Requests that ride with sums are read a step later: a GPU then has work while it is asked.
        """
        if not self.runtime.overlaps:
            return self.ranks.any(stop.is_set())
        return len(self.stops) > 1 and self.stops.pop(0).read() > 0

    def train_step(self, step: Step, stopped: Callable[[], bool] = lambda: False) -> None:
        """Update every member once; tell the other ranks whether this one is to be `stopped`."""
        if self.cut:
            self.each(lambda member: member.start_parts(len(step.images)))
        for part, inputs in step.parts:
            self.compute(part if self.cut else None, inputs)
        if self.cut:
            self.each(lambda member: member.finish_parts(step.images, stopped()))
        if self.runtime.overlaps and self.alive:
            self.stops.append(self.alive[0].accumulation.stops)
        self.step += 1

    def compute(self, part: Part | None, inputs: Inputs) -> None:
        """Let every member step on a whole batch (no `part`), or add a micro-batch's gradients."""
        done = self.step_as_one(inputs)

        def act(member: Member) -> None:
            if member.run_id in done:
                member.count_step(done[member.run_id])
            elif part is None:
                member.step(*inputs(member.method))
            else:
                member.add_part(part, *inputs(member.method))

        self.each(act)

    def step_as_one(self, inputs: Inputs) -> dict[str, Sums]:
        """Update the members whose students are stacked; return their sums by their runs' ids."""
        if self.fused is None:
            self.fused = fuse(self.alive, inputs, self.console.message)
        done: dict[str, Sums] = {}
        for fused in list(self.fused):
            if all(member.error is not None for member in fused.members):
                continue
            try:
                done |= fused.step(inputs)
            except Exception as error:  # each member finds its own in its own step
                self.fused.remove(fused)
                fused.part()
                reason = first_line(error)
                self.console.message(f"{len(fused.members)} students train one by one: {reason}")
        return done

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

    def running_loss(self) -> float:
        """Return the members' mean loss over the images since the last row."""
        losses = [member.means()["loss"] for member in self.alive]
        return sum(losses) / len(losses)

    def finish_row(self, clock: Clock, display: Display) -> None:
        """Score all members in one pass over the images, and add their rows."""
        self.each(Member.check)
        scored = {member.run_id: member.scored() for member in self.alive}
        found = iter(self.task.score([one for group in scored.values() for one in group]))
        scores = {run_id: [next(found) for _ in group] for run_id, group in scored.items()}
        rows = {}

        def score(member: Member) -> None:
            rows[member.run_id] = member.score_row(scores[member.run_id])

        def close(member: Member) -> None:
            member.close_row(rows[member.run_id])

        self.each(score)
        clock.charge([member.state for member in self.alive])
        self.each(close)
        if self.alive:
            display.row(self.alive_names())

    def save(self, clock: Clock) -> None:
        """Write checkpoints that include the time so far."""
        clock.charge([member.state for member in self.alive])
        self.each(Member.save)

    def stop(self, clock: Clock) -> None:
        """Stop at a step boundary, resumably; return only if no member could write a checkpoint.

        Raises:
            Interrupted: there are checkpoints.
        """
        self.save(clock)
        if self.alive:
            raise Interrupted(
                f"stopped in epoch {self.pace.epoch_of(self.step)} after step {self.step}; "
                "the same command goes on from there"
            )
