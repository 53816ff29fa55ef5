"""A classifier's loss in one step: a pure function of tensors."""

from kdbench.distillation.losses_of_step import step_losses
from kdbench.methods.base import Method
from kdbench.networks.forward import output_of
from kdbench.tasks.task import Sums
from kdbench.types import Batch, Losses, Network, Output


def losses_and_sums(
    student: Network, method: Method, batch: Batch, teachers: tuple[Output, ...]
) -> tuple[Losses, Sums]:
    """The losses to differentiate, and what this batch adds to the epoch's sums."""
    return losses_of_output(method, batch, output_of(student, batch.images), teachers)


def losses_of_output(
    method: Method, batch: Batch, student: Output, teachers: tuple[Output, ...]
) -> tuple[Losses, Sums]:
    """What `losses_and_sums` returns, from the student's output."""
    found = step_losses(method, batch, student, teachers)
    count = len(batch.labels)
    sums = {
        "loss": found.total.double() * count,
        "hits": (found.logits.argmax(dim=1) == batch.labels).double().sum(),
    }
    sums |= {f"term/{name}": mean.detach().double() * count for name, mean in found.means.items()}
    sums |= {
        f"method/{name}": value.detach().double().mean() * count
        for name, value in found.curves.items()
    }
    return found.losses, sums
