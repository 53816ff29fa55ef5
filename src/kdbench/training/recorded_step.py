"""A run's step on a GPU: its student and losses compiled, and a whole batch's recorded."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from kdbench.methods.base import Method
from kdbench.networks.forward import output_of
from kdbench.system.cuda_graphs import Replayed, recorder_for
from kdbench.system.runtime import Runtime
from kdbench.tasks.task import LossesOfOutput, Sums, Task
from kdbench.training.compiled_losses import CompiledLosses
from kdbench.training.compiled_students import for_training
from kdbench.training.pace import AnySchedule
from kdbench.training.snapshot import TrainState
from kdbench.training.step import LossesOf, update
from kdbench.types import Losses, Network


def recorded_step(
    state: TrainState,
    network: nn.Module,
    task: Task,
    schedule: AnySchedule,
    steps: int,
    name: str,
    report: Callable[[str], None],
) -> Replayed | None:
    """Return the part of a step that follows the draw, to be recorded and replayed.

    Args:
        state: of the run.
        network: its student as the run calls it.
        task: its task.
        schedule: its schedule.
        steps: those of the whole run.
        name: the run's, for messages.
        report: takes messages.

    Returns:
        None where the device, the task or the schedule allows no recording.
    """
    shape, recorder = task.batch_shape(schedule.batch_size), None
    if shape is not None and schedule.micro_batches == 1 and state.optimizer.recordable:
        recorder = recorder_for(task.runtime)
    if shape is None or recorder is None:
        return None
    student, losses_of = compiled_parts(state.method, network, task, schedule, steps, report)
    step = partial(update, student, state.method, state.optimizer, losses_of=losses_of)
    return Replayed(step, recorder, name, report)


def compiled_parts(
    method: Method,
    network: nn.Module,
    task: Task,
    schedule: AnySchedule,
    steps: int,
    report: Callable[[str], None],
) -> tuple[Network, LossesOf]:
    """Return the student and the losses as a run's steps call them: compiled where that pays."""
    losses: LossesOf = task.losses
    shape = task.batch_shape(compiled_size(schedule))
    if shape is None:
        return network, losses
    taps = *method.taps, *method.own_taps
    settings = schedule.precision, task.runtime, steps, report
    student = for_training(network, taps, shape, *settings)
    of_output = losses_of_output(task, schedule, report)
    if isinstance(of_output, CompiledLosses):
        losses = after_the_forward_pass(of_output)
    return student, losses


def compiled_size(schedule: AnySchedule) -> int:
    """Return the images of a full batch's micro-batch; those that have one more are eager."""
    return schedule.batch_size // schedule.micro_batches


def losses_of_output(
    task: Task, schedule: AnySchedule, report: Callable[[str], None]
) -> LossesOfOutput | None:
    """Return a task's losses of the student's output, for one run: compiled where asked for."""
    eager = task.losses_of_output
    if eager is None or not compiles_losses(task.runtime):
        return eager
    return CompiledLosses(eager, compiled_size(schedule), schedule.precision, report)


def compiles_losses(runtime: Runtime) -> bool:
    """Return whether losses are compiled: on a GPU, if asked for; whether it pays is not known."""
    return runtime.device.type == "cuda" and runtime.compile == "on"


def after_the_forward_pass(of_output: LossesOfOutput) -> LossesOf:
    """Return the losses of a batch, from those of the student's output on it."""

    def losses_of(
        network: Network, method: Method, batch: Any, teachers: Any
    ) -> tuple[Losses, Sums]:
        return of_output(method, batch, output_of(network, batch.images), teachers)

    return losses_of
