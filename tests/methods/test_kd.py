import math

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import kd_loss
from kdbench.methods.kd import KD
from kdbench.types import Batch, Output


def reference(student: list[float], teacher: list[float], temperature: float) -> float:
    """T^2 sum_k p_k log(p_k / q_k), written out for one sample."""
    p = [math.exp(z / temperature) for z in teacher]
    q = [math.exp(z / temperature) for z in student]
    p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
    return temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_loss_is_the_formula_sample_by_sample(temperature):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(5, 7, generator=generator, dtype=torch.float64) * 3
    teacher = torch.randn(5, 7, generator=generator, dtype=torch.float64) * 3
    expected = [
        reference(s, t, temperature)
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    loss = kd_loss(student, teacher, temperature)
    torch.testing.assert_close(
        loss, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_kd_weights_its_terms():
    student = Output(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), {})
    teacher = Output(torch.tensor([[1.0, 0.0], [3.0, 1.0]]), {})
    batch = Batch(torch.empty(2, 0), torch.tensor([0, 0]), torch.arange(2), torch.tensor(1.0))
    once = KD(temperature=2.0, ce_weight=1.0, kd_weight=1.0)(batch, student, (teacher,))
    weighted = KD(temperature=2.0, ce_weight=0.25, kd_weight=0.5)(batch, student, (teacher,))
    torch.testing.assert_close(weighted["ce"], 0.25 * once["ce"])
    torch.testing.assert_close(weighted["kd"], 0.5 * once["kd"])


@pytest.mark.parametrize("setting", [{"temperature": 0.0}, {"kd_weight": float("nan")}])
def test_kd_refuses_settings_without_meaning(setting):
    with pytest.raises(ConfigError, match=f"method.{next(iter(setting))} must be"):
        KD(**setting)
