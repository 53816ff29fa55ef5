import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods.logit_l2 import LogitL2
from kdbench.types import Batch, Output


def test_mean_square_of_the_logits_difference():
    student = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 5.0, 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64)
    batch = Batch(torch.empty(0), torch.tensor([0, 1]), torch.arange(2), torch.tensor(1.0))
    terms = LogitL2(l2_weight=0.3)(batch, Output(student, {}), (Output(teacher, {}),))
    assert terms["l2"].tolist() == pytest.approx([0.3 * (1 + 9 + 0.25) / 3, 0])


def test_refuses_a_negative_weight():
    with pytest.raises(ConfigError, match=r"method\.l2_weight must be 0 or more"):
        LogitL2(l2_weight=-1.0)
