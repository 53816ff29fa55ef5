import pytest
import torch
from torch import Tensor, nn

from kdbench.analysis.subjects import logits_of
from kdbench.errors import KdbenchError
from kdbench.types import Output
from support.batches import dataset

CPU = torch.device("cpu")


class Answers(nn.Module):
    """The same logits for every image, but for one of the last."""

    def __init__(self, odd: float) -> None:
        super().__init__()
        self.odd = odd

    def forward(self, images: Tensor) -> Output:
        logits = torch.zeros(len(images), 10)
        logits[-1, 3] = self.odd
        return Output(logits, {})


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_an_output_that_is_not_finite_is_of_damaged_weights(odd):
    data = dataset()
    assert logits_of(Answers(1.0), data.test, data, CPU).max() == 1
    with pytest.raises(KdbenchError, match=r"outputs on digits are not finite: its weights are da"):
        logits_of(Answers(odd), data.test, data, CPU)
