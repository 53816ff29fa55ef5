import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods.wttm import WTTM, power_sum
from kdbench.types import Batch, Output


def logits(seed: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(4, 6, generator=generator, dtype=torch.float64)


def test_each_sample_weighs_its_power_sum():
    student, teacher = logits(0), logits(1)
    powers = teacher.softmax(1) ** 0.3
    target = powers / powers.sum(1, keepdim=True)
    divergence = (target * (target.log() - student.softmax(1).log())).sum(1)
    batch = Batch(torch.empty(0), torch.zeros(4).long(), torch.arange(4), torch.tensor(1.0))
    terms = WTTM(power=0.3, wttm_weight=4.0)(batch, Output(student, {}), (Output(teacher, {}),))
    torch.testing.assert_close(terms["wttm"], 4 * powers.sum(1) * divergence, rtol=1e-12, atol=0)


def test_the_power_sum_grows_with_the_teacher_s_doubt():
    certain, uniform = torch.tensor([[1e4, 0.0, 0.0, 0.0]]), torch.zeros(1, 4)
    assert power_sum(certain, 0.2).item() == 1
    assert power_sum(uniform, 0.2).item() == pytest.approx(4**0.8)
    torch.testing.assert_close(power_sum(logits(1), 1.0), torch.ones(4, dtype=torch.float64))


def test_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method\.wttm_weight must be 0 or more"):
        WTTM(wttm_weight=-4.0)
