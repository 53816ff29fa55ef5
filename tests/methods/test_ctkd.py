import math

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import kd_loss
from kdbench.methods.ctkd import CTKD
from kdbench.types import Batch, Output


def logits(seed: int) -> Output:
    generator = torch.Generator().manual_seed(seed)
    return Output(3 * torch.randn(6, 10, generator=generator, dtype=torch.float64), {})


def batch(epoch: float) -> Batch:
    return Batch(torch.empty(0), torch.arange(6), torch.arange(6), torch.tensor(epoch))


def theta_gradient(epoch: float) -> float:
    method = CTKD().double()
    method(batch(epoch), logits(0), (logits(1),))["kd"].mean().backward()
    return method.theta.grad.item()


def test_starts_at_the_published_temperature():
    method = CTKD(kd_weight=1.0).double()
    temperature = 1 + 20 / (1 + math.exp(-1))
    terms = method(batch(1.0), logits(0), (logits(1),))
    expected = kd_loss(logits(0).logits, logits(1).logits, temperature)
    torch.testing.assert_close(terms["kd"], expected)
    assert method.observe(batch(1.0), logits(0), (logits(1),))["temperature"].item() == (
        pytest.approx(temperature)
    )


# The values that the authors of LSKD logged as decay_value while running CTKD's code.
@pytest.mark.parametrize(
    ("epoch", "factor"), [(1, -0.024471741852423), (2, -0.095491502812526), (5, -0.5), (10, -1)]
)
def test_the_gradient_turns_around_along_a_cosine(epoch, factor):
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    temperature = 1 + 20 * torch.sigmoid(theta)
    (0.9 * kd_loss(logits(0).logits, logits(1).logits, temperature)).mean().backward()
    assert theta_gradient(epoch) == pytest.approx(factor * theta.grad.item(), rel=1e-6)


def test_the_curriculum_stays_at_its_end():
    assert theta_gradient(240) == theta_gradient(10)


def test_the_students_gradient_is_not_reversed():
    student = logits(0).logits.requires_grad_()
    method = CTKD().double()
    method(batch(20.0), Output(student, {}), (logits(1),))["kd"].sum().backward()
    plain = logits(0).logits.requires_grad_()
    temperature = method.temperature(batch(20.0)).detach()
    (0.9 * kd_loss(plain, logits(1).logits, temperature)).sum().backward()
    torch.testing.assert_close(student.grad, plain.grad)


def test_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.curriculum_epochs must be above 0"):
        CTKD(curriculum_epochs=0)
