import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import kd_loss, ttm_loss
from kdbench.methods.ttm import TTM
from kdbench.types import Batch, Output


def logits(seed: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(4, 6, generator=generator, dtype=torch.float64)


def test_the_target_is_the_teacher_s_distribution_to_a_power():
    student, teacher = logits(0), logits(1)
    powers = teacher.softmax(1) ** 0.3
    target = powers / powers.sum(1, keepdim=True)
    expected = (target * (target.log() - student.softmax(1).log())).sum(1)
    batch = Batch(torch.empty(0), torch.zeros(4).long(), torch.arange(4), torch.tensor(1.0))
    terms = TTM(power=0.3, ttm_weight=45.0)(batch, Output(student, {}), (Output(teacher, {}),))
    torch.testing.assert_close(terms["ttm"], 45 * expected, rtol=1e-12, atol=0)


def test_limits():
    """Power 1 is KD at T = 1; a power near 0 pulls to the uniform; zero at the target."""
    student, teacher = logits(0), logits(1)
    torch.testing.assert_close(ttm_loss(student, teacher, 1.0), kd_loss(student, teacher, 1.0))
    uniform = torch.zeros_like(teacher)
    torch.testing.assert_close(
        ttm_loss(student, teacher, 1e-9), ttm_loss(student, uniform, 1.0), rtol=1e-7, atol=0
    )
    zero = torch.zeros(4, dtype=torch.float64)
    torch.testing.assert_close(ttm_loss(0.2 * teacher + 7, teacher, 0.2), zero)


def test_finite_where_probabilities_underflow():
    assert ttm_loss(logits(0, 400.0).float(), logits(1, 400.0).float(), 0.1).isfinite().all()


def test_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method\.power must be above 0"):
        TTM(power=0.0)
