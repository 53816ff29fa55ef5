import math

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import kd_loss
from kdbench.methods.dtkd import DTKD, dtkd_loss, shared_temperatures
from kdbench.types import Batch, Output


def logits(seed: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(6, 10, generator=generator, dtype=torch.float64)


def softmax(values: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def test_matches_the_formula_by_hand():
    student, teacher = logits(0), logits(1)
    expected = []
    for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True):
        x, y = max(z_t), max(z_s)
        t_teacher, t_student = 2 * x / (x + y) * 4, 2 * y / (x + y) * 4
        pairs = zip(softmax(z_t, t_teacher), softmax(z_s, t_student), strict=True)
        expected.append(t_teacher * t_student * sum(p * math.log(p / q) for p, q in pairs))
    assert dtkd_loss(student, teacher, 4.0).tolist() == pytest.approx(expected, rel=1e-12)


def test_both_networks_become_equally_sharp_around_the_reference():
    student, teacher = logits(0), logits(1, scale=9.0)
    t_student, t_teacher = shared_temperatures(student, teacher, 4.0)
    torch.testing.assert_close((t_student + t_teacher) / 2, torch.full_like(t_student, 4.0))
    assert (t_teacher > 4).any()
    peaks = [(z / t).amax(1) for z, t in ((student, t_student), (teacher, t_teacher))]
    torch.testing.assert_close(*peaks)


def test_with_equal_peaks_it_is_kd():
    teacher = logits(1)
    student = torch.where(teacher == teacher.amax(1, keepdim=True), teacher, 0.5 * teacher)
    torch.testing.assert_close(dtkd_loss(student, teacher, 4.0), kd_loss(student, teacher, 4.0))


def test_a_network_without_a_positive_logit_keeps_the_loss_finite():
    """Where the released formula divides by zero (x = -y) or turns a temperature around."""
    teacher = logits(1).abs().float()
    for student in (-teacher, -teacher.amax(1, keepdim=True).expand(6, 10)):
        student = student.clone().requires_grad_()
        loss = dtkd_loss(student, teacher, 4.0)
        loss.sum().backward()
        assert (loss >= 0).all()
        assert loss.isfinite().all()
        assert student.grad.isfinite().all()


def test_the_warm_up_spares_the_label_term():
    student, teacher = Output(logits(0), {}), Output(logits(1), {})
    first, last = (
        DTKD()(
            Batch(torch.empty(0), torch.arange(6), torch.arange(6), torch.tensor(epoch)),
            student,
            (teacher,),
        )
        for epoch in (1.0, 40.0)
    )
    for name, factor in (("dtkd", 20), ("kd", 20), ("ce", 1)):
        torch.testing.assert_close(first[name] * factor, last[name])


def test_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.dtkd_weight must be 0 or more"):
        DTKD(dtkd_weight=-1.0)
