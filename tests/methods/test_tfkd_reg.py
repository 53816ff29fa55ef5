import math

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods.tfkd_reg import TfKDReg, virtual_teacher
from kdbench.types import Batch, Output


def terms(logits: torch.Tensor, labels: torch.Tensor, **settings) -> dict[str, torch.Tensor]:
    batch = Batch(torch.empty(0), labels, torch.arange(len(labels)), torch.tensor(1.0))
    return TfKDReg(**settings)(batch, Output(logits, {}), ())


def test_the_virtual_teacher_is_a_softmax_of_probabilities():
    """T = 20, K = 100: 0.0105 on the label, almost uniform (baselines, section 4.3)."""
    logits = torch.zeros(1, 100, dtype=torch.float64)
    row = virtual_teacher(logits, torch.tensor([7]), 0.99, 20.0).exp()[0]
    label, other = math.exp(0.99 / 20), math.exp(0.01 / 99 / 20)
    assert row[7].item() == pytest.approx(label / (label + 99 * other), rel=1e-12)
    assert row[8].item() == pytest.approx(other / (label + 99 * other), rel=1e-12)
    assert round(row[7].item(), 4) == 0.0105


def test_worked_example():
    """Example 3 of the DR-KD notes: z = [1, 2, 0], y = 2, a 0.1, T 20, m 100."""
    logits = torch.tensor([[1.0, 2.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([2])
    found = terms(logits, labels, temperature=20.0, distill_weight=0.1, multiplier=100.0)
    target = virtual_teacher(logits, labels, 0.99, 20.0).exp()[0].tolist()
    assert target == pytest.approx([0.32781695, 0.32781695, 0.34436611], abs=5e-9)
    assert found["reg"].item() / 0.1 == pytest.approx(10.86050798, abs=5e-9)
    assert (found["ce"] + found["reg"]).item() == pytest.approx(3.25289617, abs=5e-9)


def test_zero_where_the_student_is_the_virtual_teacher():
    labels = torch.tensor([0, 3])
    logits = virtual_teacher(torch.zeros(2, 5, dtype=torch.float64), labels, 0.9, 2.0) + 4
    found = terms(logits, labels, temperature=2.0, correct_prob=0.9)
    torch.testing.assert_close(found["reg"], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("setting", [{"distill_weight": 1.1}, {"correct_prob": -0.1}])
def test_refuses_settings_without_meaning(setting):
    with pytest.raises(ConfigError, match=f"method.{next(iter(setting))} must be between 0 and 1"):
        TfKDReg(**setting)
