"""Three teachers, two samples, three classes: the worked example of the multi-teacher tests."""

import torch
from torch import Tensor

from kdbench.methods.base import Method
from kdbench.types import Batch, NetworkProbe, Output, Probe

TEMPERATURE = 4.0
ROUNDING = 1e-12  # some thousand rounding errors of float64, of numbers about one
LABELS = torch.tensor([0, 0])
TEACHERS = torch.tensor(
    [[[3, 1, 0], [0.5, 0.2, 0.1]], [[1, 0.8, 0.5], [2, 0, -1]], [[0, 2, 0], [1, 1, 0]]],
    dtype=torch.float64,
)
STUDENT = torch.tensor([[1, 0.5, 0], [0.5, 0, 0.2]], dtype=torch.float64)


def close(actual: Tensor, expected: Tensor | list | float, places: float = 1e-8) -> None:
    """Equal to as many places as the example was printed with."""
    wanted = torch.as_tensor(expected, dtype=torch.float64).expand(actual.shape)
    torch.testing.assert_close(actual.detach().double(), wanted, rtol=0, atol=places)


def run(
    method: Method,
    student: Tensor = STUDENT,
    teachers: Tensor = TEACHERS,
    labels: Tensor = LABELS,
    epoch: float = 100.0,
) -> dict[str, Tensor]:
    """The terms of a method that reads logits alone."""
    method.setup(probe(len(teachers)))
    batch = Batch(torch.empty(0), labels, torch.arange(len(labels)), torch.tensor(epoch))
    return method(batch, Output(student, {}), tuple(Output(logits, {}) for logits in teachers))


def distillation(method: Method, *args, **kwargs) -> Tensor:
    """The sum of the means of all terms but the label's."""
    terms = run(method, *args, **kwargs)
    return sum(term.mean() for name, term in terms.items() if name != "ce")


def gradient(method: Method, teachers: Tensor = TEACHERS) -> Tensor:
    """Of `distillation` with respect to the student's logits."""
    student = STUDENT.clone().requires_grad_()
    (found,) = torch.autograd.grad(distillation(method, student, teachers), student)
    return found


def probe(count: int) -> Probe:
    network = NetworkProbe(taps={})
    return Probe(network, (network,) * count, num_classes=3, labels=LABELS)


def random_logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
