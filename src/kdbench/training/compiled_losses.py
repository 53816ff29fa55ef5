"""The losses of a method, compiled on a GPU: what follows the student's forward pass in a step.

Computed one operation after the other, they take a kernel each, forward and backward, and each
kernel some microseconds of a GPU whatever its size; compiled, many become one.
"""

import copy
from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor

from kdbench.errors import first_line
from kdbench.methods.base import Method
from kdbench.system.compiling import compiled
from kdbench.system.cuda_graphs import mapped, tensors_of
from kdbench.tasks.task import LossesOfOutput, Sums
from kdbench.training.compiled_students import CLOSE
from kdbench.types import Batch, Losses, Output


class CompiledLosses:
    """A task's losses of one method; for a full batch they are compiled.

    The first full batch shows whether the compiled losses and gradients are the eager ones. Where
    they are not, or where the method cannot be compiled, its losses stay eager, after one message.

    Args:
        eager: the losses.
        size: the number of images of a full batch.
        precision: the run's.
        report: takes the message.
    """

    def __init__(
        self, eager: LossesOfOutput, size: int, precision: str, report: Callable[[str], None]
    ) -> None:
        self.eager, self.size, self.precision, self.report = eager, size, precision, report
        self.compiled: LossesOfOutput | None = None
        self.refused = False

    def __call__(
        self, method: Method, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> tuple[Losses, Sums]:
        """Return the losses to differentiate, and what this batch adds to the sums."""
        given = method, batch, student, teachers
        if len(batch.labels) != self.size or self.refused:
            return self.eager(*given)
        if self.compiled is None:
            candidate = compile_losses(self.eager)
            try:
                with torch.random.fork_rng():
                    self.compare(candidate, *given)
            except Exception as error:  # the compiler and its tools may raise anything
                self.refused = True
                name = type(method).__name__
                self.report(f"the losses of {name} are not compiled ({first_line(error)})")
                return self.eager(*given)
            self.compiled = candidate
        return self.compiled(*given)

    def compare(
        self,
        candidate: LossesOfOutput,
        method: Method,
        batch: Batch,
        student: Output,
        teachers: tuple[Output, ...],
    ) -> None:
        """Compare compiled and eager losses on copies of all that they change.

        Raises:
            ValueError: they differ.
        """
        found = []
        for losses_of in (self.eager, candidate):
            own = copy.deepcopy(method)
            output = mapped(lambda tensor: tensor.detach().requires_grad_(), student)
            losses, sums = losses_of(own, batch, output, teachers)
            wanted = [p for p in (*tensors_of(output), *own.parameters()) if p.requires_grad]
            grads = torch.autograd.grad(
                losses.total(), wanted, allow_unused=True, materialize_grads=True
            )
            buffers = [buffer for buffer in own.buffers() if buffer.is_floating_point()]
            kinds = {"loss": [losses.total()], "sums": sums.values(), "gradients": grads}
            found.append({**kinds, "buffers": buffers})
        for name, expected in found[0].items():
            check_close(name, flat(expected), flat(found[1][name]), CLOSE[self.precision])


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Return all numbers of some tensors [n], in float64."""
    return torch.cat([torch.zeros(0), *(t.detach().double().flatten().cpu() for t in tensors)])


def check_close(name: str, expected: Tensor, actual: Tensor, close: float) -> None:
    """Compare numbers [n] by the norm of their difference.

    It is relative to their own, so that gradients which are zero but for rounding do not count.

    Raises:
        ValueError: they differ.
    """
    apart, norm = (actual - expected).norm(), expected.norm()
    if not bool(apart <= close * norm):
        raise ValueError(f"{name} off by {apart.item():.1e} of {norm.item():.1e}")


@cache
def compile_losses(eager: LossesOfOutput) -> LossesOfOutput:
    """Return losses that compile themselves for every method and shape that they meet."""
    return compiled(eager, fullgraph=True)
