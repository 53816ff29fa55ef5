import math

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods.dist import DIST, dist_losses
from kdbench.types import Batch, Output


def logits(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(4, 5, generator=generator, dtype=torch.float64)


def correlation(first: list[float], second: list[float]) -> float:
    mean, other = sum(first) / len(first), sum(second) / len(second)
    pairs = list(zip(first, second, strict=True))
    product = sum((a - mean) * (b - other) for a, b in pairs)
    squares = sum((a - mean) ** 2 for a, _ in pairs) * sum((b - other) ** 2 for _, b in pairs)
    return product / math.sqrt(squares)


def test_matches_the_formula_by_hand():
    student, teacher = logits(0), logits(1)
    inter, intra = dist_losses(student, teacher, temperature=2.0)
    p, q = (torch.softmax(z / 2, dim=1) for z in (student, teacher))
    rows = [4 * (1 - correlation(a, b)) for a, b in zip(p.tolist(), q.tolist(), strict=True)]
    columns = zip(p.T.tolist(), q.T.tolist(), strict=True)
    mean = sum(correlation(a, b) for a, b in columns) / 5
    assert inter.tolist() == pytest.approx(rows, rel=1e-5)  # 1e-8 in the denominator
    assert intra.item() == pytest.approx(4 * (1 - mean), rel=1e-5)


def test_a_student_that_is_only_less_sure_loses_nothing():
    """Pearson's correlation ignores scale and shift: p^s = (p^t + uniform) / 2 is perfect."""
    teacher = logits(0)
    blurred = torch.log((torch.softmax(teacher, dim=1) + 0.2) / 2)
    for part in dist_losses(blurred, teacher, temperature=1.0):
        torch.testing.assert_close(part, torch.zeros_like(part), rtol=0, atol=1e-6)


def test_constant_probabilities_have_a_finite_gradient():
    student = torch.zeros(4, 5, requires_grad=True)
    batch = Batch(torch.empty(0), torch.zeros(4).long(), torch.arange(4), torch.tensor(1.0))
    terms = DIST()(batch, Output(student, {}), (Output(logits(1).float(), {}),))
    sum(term.mean() for term in terms.values()).backward()
    assert student.grad.isfinite().all()


def test_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.temperature must be above 0"):
        DIST(temperature=0.0)
