"""Logits, labels and a batch for the tests of methods."""

import torch
from torch import Tensor

from kdbench.methods.base import Method
from kdbench.types import Batch, Output

B, K = 6, 10
LABELS = torch.tensor([0, 9, 4, 4, 1, 7])


def logits(seed: int, scale: float = 3.0, count: int = B) -> Tensor:
    """[B, K], normally distributed, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, K, generator=generator, dtype=torch.float64)


def terms_of(
    method: Method,
    student: Tensor,
    teacher: Tensor,
    epoch: float = 1000.0,
    drawn: Tensor | None = None,
) -> dict[str, Tensor]:
    """A method's terms on these logits, by default after every warm-up."""
    batch = Batch(torch.empty(0), LABELS, torch.arange(B), torch.tensor(epoch), drawn)
    return method(batch, Output(student, {}), (Output(teacher, {}),))


def check_warm_up(method: Method, epochs: int, *names: str) -> None:
    """In the first epoch each term has one part in `epochs` of its weight, the label term all."""
    pair = logits(0), logits(1)
    first, last = (terms_of(method, *pair, epoch) for epoch in (1.0, 2.0 * epochs))
    for name in names:
        torch.testing.assert_close(first[name] * epochs, last[name])
    torch.testing.assert_close(first["ce"], last["ce"])
