import pytest
import torch
import torch.nn.functional as F

from kdbench.errors import ConfigError
from kdbench.methods.tfkd_self import TfKDSelf
from kdbench.types import Batch, Output


def terms(student, teacher, labels, **settings) -> dict[str, torch.Tensor]:
    student, teacher = (torch.tensor(z, dtype=torch.float64) for z in (student, teacher))
    labels = torch.tensor(labels)
    batch = Batch(torch.empty(0), labels, torch.arange(len(labels)), torch.tensor(1.0))
    return TfKDSelf(**settings)(batch, Output(student, {}), (Output(teacher, {}),))


STUDENT = [[0.5, 1.5, 1.0, -0.5], [2.0, 0.0, -1.0, 1.0]]
TEACHER = [[1.0, 4.0, 2.0, 0.0], [3.0, -1.0, 0.5, 2.0]]


def test_worked_example():
    """Example 2 of the DR-KD notes, raw target: a 0.95, T 20, m 1, K 4."""
    found = terms(STUDENT, TEACHER, [2, 0], temperature=20.0, distill_weight=0.95)
    assert found["ce"].mean().item() / 0.05 == pytest.approx(0.84337848, abs=5e-8)
    assert found["kd"].mean().item() / 0.95 == pytest.approx(0.09795973, abs=5e-9)
    assert sum(term.mean().item() for term in found.values()) == pytest.approx(0.13523067, abs=5e-9)


def test_the_divergence_averages_over_elements():
    """As PyTorch's KLDivLoss with reduction "mean": B K elements, not B rows."""
    student, teacher = (torch.tensor(z, dtype=torch.float64) / 3 for z in (STUDENT, TEACHER))
    expected = 9 * F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="none").mean()
    found = terms(STUDENT, TEACHER, [2, 0], temperature=3.0, distill_weight=0.5, multiplier=7.0)
    torch.testing.assert_close(found["kd"].mean(), 0.5 * 7 * expected, rtol=1e-12, atol=0)


def test_refuses_a_weight_above_one():
    with pytest.raises(ConfigError, match=r"method\.distill_weight must be between 0 and 1"):
        TfKDSelf(distill_weight=1.5)
