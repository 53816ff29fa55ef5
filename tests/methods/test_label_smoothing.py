import pytest
import torch
import torch.nn.functional as F

from kdbench.errors import ConfigError
from kdbench.methods.label_smoothing import LabelSmoothing
from kdbench.types import Batch, Output

LABELS = torch.tensor([2, 0, 4])
LOGITS = 3 * torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def loss(logits: torch.Tensor, labels: torch.Tensor, **settings) -> torch.Tensor:
    batch = Batch(torch.empty(0), labels, torch.arange(len(labels)), torch.tensor(1.0))
    return LabelSmoothing(**settings)(batch, Output(logits, {}), ())["ce"]


def test_over_all_classes_it_is_pytorch_s():
    expected = F.cross_entropy(LOGITS, LABELS, label_smoothing=0.2, reduction="none")
    torch.testing.assert_close(
        loss(LOGITS, LABELS, smoothing=0.2, spread="all"), expected, rtol=1e-12, atol=0
    )


def test_over_the_others_the_label_keeps_the_rest():
    log_probs = LOGITS.log_softmax(1).tolist()
    expected = [
        -sum((0.9 if k == y else 0.1 / 4) * row[k] for k in range(5))
        for row, y in zip(log_probs, LABELS.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        loss(LOGITS, LABELS, smoothing=0.1, spread="others").tolist(), expected, rtol=1e-12, atol=0
    )


def test_worked_example():
    """Example 3 of the DR-KD notes: z = [1, 2, 0], y = 2."""
    logits = torch.tensor([[1.0, 2.0, 0.0]], dtype=torch.float64)
    value = loss(logits, torch.tensor([2]), smoothing=0.1, spread="others")
    assert value.item() == pytest.approx(2.25760596, abs=5e-9)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_refuses_a_smoothing_without_meaning(smoothing):
    with pytest.raises(ConfigError, match=r"method\.smoothing must be"):
        LabelSmoothing(smoothing=smoothing)
