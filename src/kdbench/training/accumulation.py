"""A step in micro-batches, computed in sequence or on several ranks with the same result.

All micro-batches start from the same weights, running statistics, controllers and banks, and draw
from generators seeded by step and number. Their gradients are then summed for one update, and the
changes of their forward passes are merged. So a step does not depend on which rank computes which
micro-batch, except for the rounding of sums of more than two.

Several ranks add up as they go (`kdbench.parallel.overlap`): a step has its gradients' messages,
and one with everything else. Under `runtime.exact` they add up after the last backward pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.methods.base import Method
from kdbench.parallel.micro_batches import Part
from kdbench.parallel.overlap import OnTheWay, Overlap
from kdbench.parallel.ranks import Ranks
from kdbench.seeds import derive
from kdbench.tasks.task import Sums
from kdbench.training.snapshot import TrainState
from kdbench.training.step import LossesOf
from kdbench.types import Losses, Network


class SideEffects:
    """The state that forward passes change: running statistics, controllers and banks.

    Floating-point buffers move by the mean change of all micro-batches, weighted by their images. A
    bank keeps each image's own row. Integer buffers, such as batch norm's count, advance once a
    step.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        parts = [part for module in modules for part in module.modules()]
        methods = [part for part in parts if isinstance(part, Method)]
        banks = [method.get_buffer(name) for method in methods for name in method.banks]
        found = {id(buffer): buffer for module in modules for buffer in module.buffers()}
        self.banks = [found.pop(id(bank)) for bank in banks]
        self.floats = [buffer for buffer in found.values() if buffer.is_floating_point()]
        self.counts = [buffer for buffer in found.values() if not buffer.is_floating_point()]

    def start(self, size: int) -> None:
        """Save the state before a step on a batch of `size` images."""
        self.before = [buffer.clone() for buffer in (*self.floats, *self.counts)]
        self.changes = [torch.zeros_like(buffer) for buffer in self.floats]
        self.rows = [bank.new_zeros(size, *bank.shape[1:]) for bank in self.banks]

    def start_part(self, index: Tensor) -> None:
        """Restore the state before the step, for a micro-batch of the images at `index`."""
        for buffer, then in zip((*self.floats, *self.counts), self.before, strict=True):
            buffer.copy_(then)
        self.rows_before = [bank[index] for bank in self.banks]

    def end_part(self, index: Tensor, part: Part) -> None:
        """Collect what the micro-batch has changed."""
        for buffer, then, change in zip(self.floats, self.before, self.changes, strict=False):
            change.add_(buffer - then, alpha=part.share)
        for bank, rows, then in zip(self.banks, self.rows, self.rows_before, strict=True):
            rows[part.place] = bank[index]
            bank[index] = then

    def finish(self, index: Tensor) -> None:
        """Apply the changes of all micro-batches of the images at `index` [B], summed by now."""
        for buffer, then, change in zip(self.floats, self.before, self.changes, strict=False):
            torch.add(then, change, out=buffer)
        for bank, rows in zip(self.banks, self.rows, strict=True):
            bank[index] = rows


class Accumulation:
    """The steps of a run whose batches are split into micro-batches.

    Args:
        student: as the run calls it.
        state: of the run.
        seed: the run's.
        ranks: the processes.
        losses_of: the task's losses.
        overlaps: whether they add up while a backward pass runs.
    """

    def __init__(
        self,
        student: Network,
        state: TrainState,
        seed: int,
        ranks: Ranks,
        losses_of: LossesOf,
        overlaps: bool = False,
    ) -> None:
        self.losses_of, self.student, self.state = losses_of, student, state
        self.seed, self.ranks = seed, ranks
        self.effects = SideEffects([state.student, state.method])
        self.overlap = Overlap(ranks, state.optimizer.params()) if overlaps else None

    def start(self, step: int, size: int) -> None:
        """Begin `step` (from 0, over all epochs), on a batch of `size` images."""
        self.step = step
        self.state.optimizer.clear()
        self.effects.start(size)
        self.losses: list[Tensor] = []
        self.sums: list[Sums] = []

    def add(self, part: Part, batch: Any, teachers: Any) -> None:
        """Add the gradients of one micro-batch; no parameter moves yet."""
        generator = self.state.generator
        generator.manual_seed(derive(self.seed, "draw", self.step, part.number))
        torch.manual_seed(derive(self.seed, "train", self.step, part.number))
        batch = batch._replace(drawn=self.state.method.draw(batch, generator))
        self.effects.start_part(batch.index)
        losses, sums = self.losses_of(self.student, self.state.method, batch, teachers)
        self.losses.append(self.differentiate(losses.times(part.share), part.last))
        self.effects.end_part(batch.index, part)
        self.sums.append(sums)

    def differentiate(self, losses: Losses, last: bool) -> Tensor:
        """Add the gradients of a micro-batch, the rank's `last` or not; return its loss []."""
        optimizer = self.state.optimizer
        if self.overlap is None or not last:
            return optimizer.accumulate(losses)
        self.overlap.watch()
        loss = optimizer.accumulate(losses, self.overlap.send)
        self.overlap.flush()
        return loss

    def finish(self, index: Tensor, stop: bool) -> Sums:
        """Update from all micro-batches of the images at `index` [B]; return the batch's sums.

        Where ranks add up as they go, `stops` then is how many of them called with `stop`.
        """
        optimizer = self.state.optimizer
        loss = torch.stack(self.losses).sum()
        names = sorted(self.sums[0])
        rows = [torch.stack([sums[name] for name in names]) for sums in self.sums]
        total = torch.stack(rows).sum(dim=0)
        effects = [*self.effects.changes, *self.effects.rows]
        if self.overlap is None:
            self.ranks.add_up([loss, *optimizer.gradients()])
            self.ranks.add_up(effects)
            self.ranks.add_up([total])
        else:
            stops = torch.full_like(total[0], float(stop))
            self.overlap.finish([loss, total, stops, *effects])
            self.stops = OnTheWay(stops)
        self.effects.finish(index)  # first: the average of the weights takes statistics along
        optimizer.apply(loss)
        return dict(zip(names, total.unbind(), strict=True))
