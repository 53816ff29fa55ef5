import math

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import dkd_losses
from kdbench.methods.rld import RLD, confidence_loss, correlation_loss
from kdbench.types import Batch, Output

LABELS = torch.tensor([0, 9, 4, 4, 1, 7])


def logits(seed: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(6, 10, generator=generator, dtype=torch.float64)


def divergence(first: list[float], second: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(first, second, strict=True) if p > 0)


def softmax(values: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def test_matches_the_formulas_by_hand():
    student, teacher = logits(0), logits(1)
    confidence, correlation = [], []
    for z_s, z_t, y in zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True):
        p_max, p_y = max(softmax(z_t, 2.0)), softmax(z_s, 2.0)[y]
        confidence.append(4 * divergence([p_max, 1 - p_max], [p_y, 1 - p_y]))
        kept = [k for k in range(10) if z_t[k] < z_t[y]]
        soft = [softmax([z[k] for k in kept], 3.0) for z in (z_t, z_s)] if kept else [[], []]
        correlation.append(9 * divergence(*soft))
    found = confidence_loss(student, teacher, LABELS, 2.0)
    assert found.tolist() == pytest.approx(confidence, rel=1e-10)
    found = correlation_loss(student, teacher, LABELS, 3.0)
    assert found.tolist() == pytest.approx(correlation, rel=1e-10, abs=1e-12)


def test_with_a_teacher_that_is_right_it_is_dkd():
    student, teacher = logits(0), logits(1)
    teacher[torch.arange(6), LABELS] = 20.0
    target, others = dkd_losses(student, teacher, LABELS, 4.0)
    torch.testing.assert_close(confidence_loss(student, teacher, LABELS, 4.0), target)
    torch.testing.assert_close(correlation_loss(student, teacher, LABELS, 4.0), others)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_label_ranked_last_leaves_nothing_to_correlate(scale):
    student = logits(0, scale).float().requires_grad_()
    teacher = logits(1, scale).float()
    teacher[torch.arange(6), LABELS] = -10 * scale
    loss = correlation_loss(student, teacher, LABELS, 1.0)
    (loss.sum() + confidence_loss(student, teacher, LABELS, 1.0).sum()).backward()
    assert torch.equal(loss, torch.zeros(6))
    assert student.grad.isfinite().all()


def test_the_warm_up_spares_the_label_term():
    student, teacher = Output(logits(0), {}), Output(logits(1), {})
    first, last = (
        RLD()(
            Batch(torch.empty(0), LABELS, torch.arange(6), torch.tensor(epoch)), student, (teacher,)
        )
        for epoch in (1.0, 40.0)
    )
    for name, factor in (("confidence", 20), ("correlation", 20), ("ce", 1)):
        torch.testing.assert_close(first[name] * factor, last[name])


def test_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.confidence_temperature must be above 0"):
        RLD(confidence_temperature=0.0)
