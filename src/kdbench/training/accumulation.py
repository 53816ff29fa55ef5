"""A step in micro-batches, computed in sequence or on several ranks with the same result.

All micro-batches start from the same weights, running statistics, controllers and banks, and draw
from generators seeded by step and number. Their gradients are then summed for one update, and the
changes of their forward passes are merged. So a step does not depend on which rank computes which
micro-batch, except for the rounding of sums of more than two.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.methods.base import Method
from kdbench.parallel.micro_batches import Part
from kdbench.parallel.ranks import Ranks
from kdbench.seeds import derive
from kdbench.tasks.task import Sums
from kdbench.training.snapshot import TrainState
from kdbench.training.step import LossesOf
from kdbench.types import Network


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

    def finish(self, index: Tensor, ranks: Ranks) -> None:
        """Apply the merged changes, after the last micro-batch of the images at `index` [B]."""
        ranks.add_up([*self.changes, *self.rows])
        for buffer, then, change in zip(self.floats, self.before, self.changes, strict=False):
            torch.add(then, change, out=buffer)
        for bank, rows in zip(self.banks, self.rows, strict=True):
            bank[index] = rows


class Accumulation:
    """The steps of a run whose batches are split into micro-batches."""

    def __init__(
        self, student: Network, state: TrainState, seed: int, ranks: Ranks, losses_of: LossesOf
    ) -> None:
        self.losses_of, self.student, self.state = losses_of, student, state
        self.seed, self.ranks = seed, ranks
        self.effects = SideEffects([state.student, state.method])

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
        self.losses.append(self.state.optimizer.accumulate(losses.times(part.share)))
        self.effects.end_part(batch.index, part)
        self.sums.append(sums)

    def finish(self, index: Tensor) -> Sums:
        """Update from all micro-batches of the images at `index` [B]; return the batch's sums."""
        optimizer = self.state.optimizer
        loss = torch.stack(self.losses).sum()
        self.ranks.add_up([loss, *optimizer.gradients()])
        optimizer.apply(loss)
        self.effects.finish(index, self.ranks)
        names = sorted(self.sums[0])
        rows = [torch.stack([sums[name] for name in names]) for sums in self.sums]
        total = torch.stack(rows).sum(dim=0)
        self.ranks.add_up([total])
        return dict(zip(names, total.unbind(), strict=True))
