import math

import torch

from kdbench.methods.ce import CE
from kdbench.types import Batch, Output


def test_ce_is_minus_log_of_the_label_s_probability():
    batch = Batch(torch.empty(2, 0), torch.tensor([1, 0]), torch.arange(2), torch.tensor(1.0))
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]], dtype=torch.float64)
    terms = CE()(batch, Output(logits, {}), ())
    expected = torch.tensor([-math.log(0.75), math.log(2.0)], dtype=torch.float64)
    torch.testing.assert_close(terms["ce"], expected)
