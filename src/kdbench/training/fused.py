"""Members of a cohort whose students train as one stacked network (`runtime.fused`).

A step runs one forward and one backward pass for all of them. Each member keeps its own loss,
optimizer, learning rate, guard, checkpoints and record: the gradient of the sum of all losses by
one student's parameters is that of its own loss. On a GPU this replaces as many small kernels as
there are members by one. Rounding may depend on the number of members.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import first_line
from kdbench.methods.base import Method, Wrapper
from kdbench.networks.stacked import Stacked, architecture
from kdbench.system.cuda_graphs import Replayed, recorder_for
from kdbench.system.precision import arithmetic
from kdbench.tasks.task import Inputs, LossesOfOutput, Sums
from kdbench.training.compiled_students import CLOSE, compiles
from kdbench.training.member import Member
from kdbench.training.recorded_step import losses_of_output
from kdbench.types import Batch, Losses, Output


class Fused:
    """Members that step together.

    Args:
        members: at least two, for which `fusable` holds, with students of one architecture.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members, first = list(members), members[0]
        self.precision = first.schedule.precision
        self.losses_of = {member.run_id: losses_of(member) for member in members}
        taps = {tap for m in members for tap in (*m.method.taps, *m.method.own_taps)}
        self.stack = Stacked([member.network for member in members], sorted(taps))
        self.reached: dict[str, set[str]] = {}  # the parameters that a run's losses depend on
        self.stepped = False
        recorder, name = recorder_for(first.runtime), f"{len(members)} students as one"
        self.replayed: Replayed | None = None
        if recorder is not None:
            self.replayed = Replayed(self.update, recorder, name, first.console.message)
        for member in members:
            member.recorder, member.fused = recorder, len(members)

    def step(self, inputs: Inputs) -> dict[str, Sums]:
        """Update all members; return each one's sums by its run's id.

        A member that has failed stays in the stack, since a recorded step has a fixed number of
        them.

        Raises:
            Exception: the students cannot run as one, or one member's losses cannot be computed.
                Nothing has moved if it is the first step, which shows what no student of these can
                do; after a later one, running statistics and banks may have.
        """
        if self.stepped:
            return self._step(inputs)
        before = copy.deepcopy(self.moving()), [m.state.generator.get_state() for m in self.members]
        try:
            sums = self._step(inputs)
        except Exception:
            self.join()
            with torch.no_grad():
                for tensor, kept in zip(self.moving(), before[0], strict=True):
                    tensor.copy_(kept)
            for member, drawn in zip(self.members, before[1], strict=True):
                member.state.generator.set_state(drawn)
            raise
        self.stepped = True
        return sums

    def moving(self) -> list[Tensor]:
        """Return what a forward pass changes: running statistics and what methods remember."""
        own = [buffer for member in self.members for buffer in member.method.buffers()]
        return [*self.stack.buffers.values(), *own]

    def _step(self, inputs: Inputs) -> dict[str, Sums]:
        batch, teachers = inputs(self.members[0].method)
        drawn = []
        for member in self.members:
            state = member.state
            member.pace.start_step(state.optimizer, state.step)
            drawn.append(member.method.draw(batch, state.generator))
        read = {tap for member in self.members for tap in member.method.taps}
        taught = tuple(
            Output(logits, {tap: value for tap, value in taps.items() if tap in read})
            for logits, taps in teachers
        )
        aside = nullcontext() if self.replayed is None else self.replayed.recorder.aside()
        with aside, arithmetic(self.precision):
            sums: dict[str, Sums] = (self.replayed or self.update)(batch, tuple(drawn), taught)
        return sums

    def join(self) -> None:
        """Let later work wait for all steps so far."""
        if self.replayed is not None:
            self.replayed.recorder.join()

    def part(self) -> None:
        """Let the members step by themselves from now on; their weights are where they were."""
        self.join()
        for member in self.members:
            member.recorder = member.fused = None

    def update(
        self, batch: Batch, drawn: tuple[Tensor | None, ...], teachers: tuple[Output, ...]
    ) -> dict[str, Sums]:
        """Do the part of a step that follows the draws: from tensors to tensors."""
        losses: dict[str, Losses] = {}
        sums: dict[str, Sums] = {}
        found = zip(self.members, drawn, self.stack(batch.images), strict=True)
        for member, numbers, output in found:
            name, own = member.run_id, batch._replace(drawn=numbers)
            if member.error is None:
                given = member.method, own, output, teachers
                losses[name], sums[name] = self.losses_of[name](*given)
                if name not in self.reached:
                    self.reached[name] = self.reach(losses[name], output, batch.images)
        self.differentiate(losses)
        for member in self.members:
            if member.run_id in losses:
                total = losses[member.run_id].total().detach()
                member.state.optimizer.apply(total)
        return sums

    def differentiate(self, losses: Mapping[str, Losses]) -> None:
        """Give the parameters of these runs the gradients of their own losses."""
        stacked = self.stack.trained
        members = [member for member in self.members if member.run_id in losses]
        own = [p for member in members for p in member.method.parameters() if p.requires_grad]
        total = torch.stack([one.total() for one in losses.values()]).sum()
        gradients = torch.autograd.grad(total, [*stacked.values(), *own], allow_unused=True)
        for parameter, gradient in zip(own, gradients[len(stacked) :], strict=True):
            parameter.grad = gradient
        for name, gradient in zip(stacked, gradients, strict=False):
            rows = [None] * len(self.members) if gradient is None else gradient.unbind()
            for member, row in zip(self.members, rows, strict=True):
                # A parameter that a loss does not reach has no gradient and does not decay.
                reached = name in self.reached.get(member.run_id, ())
                member.network.get_parameter(name).grad = row if reached else None

    def reach(self, losses: Losses, output: Output, images: Tensor) -> set[str]:
        """Name the parameters of a student that its losses depend on."""
        names = ["", *output.taps]
        tensors = [output.logits, *output.taps.values()]
        grads = torch.autograd.grad(losses.total(), tensors, retain_graph=True, allow_unused=True)
        used = [name for name, grad in zip(names, grads, strict=True) if grad is not None]
        return self.stack.reached_by(used, images[:1].detach())

    def compile(self, images: Tensor) -> None:
        """Compile the stack's forward pass, where that pays and gives each student's logits."""
        first = self.members[0]
        if not compiles(first.runtime, first.pace.steps):
            return
        self.stack.compile(first.schedule.batch_size)
        try:
            self.try_out(images)
        except Exception as error:  # the compiler and its tools may raise anything
            self.stack.compiled = None
            reason = first_line(error)
            first.console.message(f"{len(self.members)} students as one are not compiled: {reason}")

    def try_out(self, images: Tensor) -> None:
        """Compare the stack's logits on a batch with each student's own.

        Raises:
            ValueError: they differ.
        """
        buffers = {name: stack.clone() for name, stack in self.stack.buffers.items()}
        with torch.no_grad(), arithmetic(self.precision):
            together, _ = self.stack.forward(buffers, images)
            for member, logits in zip(self.members, together, strict=True):
                alone = copy.deepcopy(member.network).train()(images).logits
                worst = (logits - alone).abs().max() / alone.abs().max()
                if not bool(worst <= CLOSE[self.precision]):
                    raise ValueError(f"the logits of {member.run_id} are off by {worst.item():.1e}")


def losses_of(member: Member) -> LossesOfOutput:
    """Return a member's losses of its student's output."""
    found = losses_of_output(member.task, member.schedule, member.console.message)
    assert found is not None, "fusable"
    return found


def fuse(members: Sequence[Member], inputs: Inputs, report: Callable[[str], None]) -> list[Fused]:
    """Stack the students of a cohort that can run as one, in groups of one architecture.

    Args:
        members: the cohort.
        inputs: a batch.
        report: takes a message where a group cannot be stacked.
    """
    groups: dict[Any, list[Member]] = {}
    for member in members:
        if fusable(member):
            groups.setdefault(architecture(member.network), []).append(member)
    found = []
    for group in groups.values():
        if len(group) < 2:
            continue
        fused, images = Fused(group), inputs(group[0].method)[0].images
        try:
            fused.compile(images)
            fused.try_out(images)
        except Exception as error:  # whatever a network does that vmap cannot
            fused.part()
            report(f"{len(group)} students train one by one: {first_line(error)}")
        else:
            found.append(fused)
    return found


def fusable(member: Member) -> bool:
    """Return whether a member's step is a forward pass that others can share, and a loss."""
    method, optimizer = member.method, member.state.optimizer
    return (
        member.task.losses_of_output is not None
        and member.runtime.ranks.count == 1
        and member.schedule.micro_batches == 1
        and optimizer.scaler is None
        and has_plain_step(method)
        and any(parameter.requires_grad for parameter in member.network.parameters())
    )


def has_plain_step(method: Method) -> bool:
    """Return whether a recipe's step is one forward and backward pass of an unchanged student."""
    return method.views == 1 and not method.streams and not adapts(method)


def adapts(method: Method) -> bool:
    """Return whether a recipe may change its student."""
    if isinstance(method, Wrapper) and type(method).adapt is Wrapper.adapt:
        return adapts(method.inner)
    return type(method).adapt is not Method.adapt
