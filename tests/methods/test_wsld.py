import math

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import kl_divergence
from kdbench.methods.wsld import WSLD, soft_label_weight
from kdbench.types import Batch, Output

LABELS = torch.tensor([0, 3, 1, 1])
BATCH = Batch(torch.empty(0), LABELS, torch.arange(4), torch.tensor(1.0))


def logits(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(4, 6, generator=generator, dtype=torch.float64)


def probabilities(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(z / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def reference(student: list[float], teacher: list[float], label: int, temperature: float) -> float:
    loss_s = -math.log(probabilities(student)[label])
    loss_t = -math.log(probabilities(teacher)[label])
    weight = 1 - math.exp(-loss_s / (loss_t + 1e-7))
    target, found = probabilities(teacher, temperature), probabilities(student, temperature)
    soft = -sum(p * math.log(q) for p, q in zip(target, found, strict=True))
    return temperature**2 * weight * soft


def test_it_is_the_formula_sample_by_sample():
    student, teacher = logits(0), logits(1)
    terms = WSLD(temperature=2.0, soft_weight=2.5)(
        BATCH, Output(student, {}), (Output(teacher, {}),)
    )
    rows = zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True)
    expected = torch.tensor([2.5 * reference(*row, 2.0) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(terms["soft"], expected, rtol=1e-12, atol=0)


def test_its_gradient_is_that_of_the_weighted_divergence():
    student, teacher = logits(0).requires_grad_(), logits(1)
    weight = soft_label_weight(student, teacher, LABELS)
    terms = WSLD(temperature=1.0, soft_weight=1.0)(
        BATCH, Output(student, {}), (Output(teacher, {}),)
    )
    divergence = weight * kl_divergence(teacher.log_softmax(1), student.log_softmax(1))
    found = torch.autograd.grad(terms["soft"].sum(), student)[0]
    torch.testing.assert_close(found, torch.autograd.grad(divergence.sum(), student)[0])


def test_the_weight_has_a_limit_where_a_loss_vanishes():
    certain = torch.tensor([[200.0, 0.0]])
    labels = torch.tensor([0])
    assert soft_label_weight(torch.zeros(1, 2), certain, labels).item() == 1
    assert soft_label_weight(certain, certain, labels).item() == 0
    same = soft_label_weight(logits(0), logits(0), LABELS)
    torch.testing.assert_close(same, torch.full_like(same, 1 - math.exp(-1)), rtol=1e-5, atol=0)


def test_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method\.soft_weight must be 0 or more"):
        WSLD(soft_weight=float("inf"))
