"""Losses of labels alone, or of a student that was trained before: each against its formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy

from kdbench.errors import ConfigError
from kdbench.methods.bce import BCE
from kdbench.methods.ce import CE
from kdbench.methods.label_smoothing import LabelSmoothing
from kdbench.methods.tfkd_reg import TfKDReg, virtual_teacher
from kdbench.methods.tfkd_self import TfKDSelf
from kdbench.types import Batch, Output


def test_ce_is_minus_log_of_the_label_s_probability():
    batch = Batch(torch.empty(2, 0), torch.tensor([1, 0]), torch.arange(2), torch.tensor(1.0))
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]], dtype=torch.float64)
    terms = CE()(batch, Output(logits, {}), ())
    expected = torch.tensor([-math.log(0.75), math.log(2.0)], dtype=torch.float64)
    torch.testing.assert_close(terms["ce"], expected)


def test_bce_is_timm_s_with_hard_and_soft_labels():
    logits, labels, targets = torch.randn(4, 5), torch.tensor([0, 3, 1, 2]), torch.rand(4, 5)
    batch = Batch(logits, labels, labels, torch.tensor(1.0))
    theirs = BinaryCrossEntropy(smoothing=0.0)
    for given, known in ((batch, labels), (batch._replace(targets=targets), targets)):
        found = BCE()(given, Output(logits, {}), ())["ce"]
        torch.testing.assert_close(found.mean(), theirs(logits, known))


LABELS = torch.tensor([2, 0, 4])
LOGITS = 3 * torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def loss(logits: torch.Tensor, labels: torch.Tensor, **settings) -> torch.Tensor:
    batch = Batch(torch.empty(0), labels, torch.arange(len(labels)), torch.tensor(1.0))
    return LabelSmoothing(**settings)(batch, Output(logits, {}), ())["ce"]


def test_label_smoothing_over_all_classes_it_is_pytorch_s():
    expected = F.cross_entropy(LOGITS, LABELS, label_smoothing=0.2, reduction="none")
    torch.testing.assert_close(
        loss(LOGITS, LABELS, smoothing=0.2, spread="all"), expected, rtol=1e-12, atol=0
    )


def test_label_smoothing_over_the_others_the_label_keeps_the_rest():
    log_probs = LOGITS.log_softmax(1).tolist()
    expected = [
        -sum((0.9 if k == y else 0.1 / 4) * row[k] for k in range(5))
        for row, y in zip(log_probs, LABELS.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        loss(LOGITS, LABELS, smoothing=0.1, spread="others").tolist(), expected, rtol=1e-12, atol=0
    )


def test_label_smoothing_worked_example():
    """Example 3 of the DR-KD notes: z = [1, 2, 0], y = 2."""
    logits = torch.tensor([[1.0, 2.0, 0.0]], dtype=torch.float64)
    value = loss(logits, torch.tensor([2]), smoothing=0.1, spread="others")
    assert value.item() == pytest.approx(2.25760596, abs=5e-9)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_label_smoothing_refuses_a_smoothing_without_meaning(smoothing):
    with pytest.raises(ConfigError, match=r"method\.smoothing must be"):
        LabelSmoothing(smoothing=smoothing)


def terms(student, teacher, labels, **settings) -> dict[str, torch.Tensor]:
    student, teacher = (torch.tensor(z, dtype=torch.float64) for z in (student, teacher))
    labels = torch.tensor(labels)
    batch = Batch(torch.empty(0), labels, torch.arange(len(labels)), torch.tensor(1.0))
    return TfKDSelf(**settings)(batch, Output(student, {}), (Output(teacher, {}),))


STUDENT = [[0.5, 1.5, 1.0, -0.5], [2.0, 0.0, -1.0, 1.0]]
TEACHER = [[1.0, 4.0, 2.0, 0.0], [3.0, -1.0, 0.5, 2.0]]


def test_tfkd_self_worked_example():
    """Example 2 of the DR-KD notes, raw target: a 0.95, T 20, m 1, K 4."""
    found = terms(STUDENT, TEACHER, [2, 0], temperature=20.0, distill_weight=0.95)
    assert found["ce"].mean().item() / 0.05 == pytest.approx(0.84337848, abs=5e-8)
    assert found["kd"].mean().item() / 0.95 == pytest.approx(0.09795973, abs=5e-9)
    assert sum(term.mean().item() for term in found.values()) == pytest.approx(0.13523067, abs=5e-9)


def test_tfkd_self_the_divergence_averages_over_elements():
    """As PyTorch's KLDivLoss with reduction "mean": B K elements, not B rows."""
    student, teacher = (torch.tensor(z, dtype=torch.float64) / 3 for z in (STUDENT, TEACHER))
    expected = 9 * F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="none").mean()
    found = terms(STUDENT, TEACHER, [2, 0], temperature=3.0, distill_weight=0.5, multiplier=7.0)
    torch.testing.assert_close(found["kd"].mean(), 0.5 * 7 * expected, rtol=1e-12, atol=0)


def test_tfkd_self_refuses_a_weight_above_one():
    with pytest.raises(ConfigError, match=r"method\.distill_weight must be between 0 and 1"):
        TfKDSelf(distill_weight=1.5)


def tfkd_reg_terms(
    logits: torch.Tensor, labels: torch.Tensor, **settings
) -> dict[str, torch.Tensor]:
    batch = Batch(torch.empty(0), labels, torch.arange(len(labels)), torch.tensor(1.0))
    return TfKDReg(**settings)(batch, Output(logits, {}), ())


def test_tfkd_reg_the_virtual_teacher_is_a_softmax_of_probabilities():
    """T = 20, K = 100: 0.0105 on the label, almost uniform (baselines, section 4.3)."""
    logits = torch.zeros(1, 100, dtype=torch.float64)
    row = virtual_teacher(logits, torch.tensor([7]), 0.99, 20.0).exp()[0]
    label, other = math.exp(0.99 / 20), math.exp(0.01 / 99 / 20)
    assert row[7].item() == pytest.approx(label / (label + 99 * other), rel=1e-12)
    assert row[8].item() == pytest.approx(other / (label + 99 * other), rel=1e-12)
    assert round(row[7].item(), 4) == 0.0105


def test_tfkd_reg_worked_example():
    """Example 3 of the DR-KD notes: z = [1, 2, 0], y = 2, a 0.1, T 20, m 100."""
    logits = torch.tensor([[1.0, 2.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([2])
    found = tfkd_reg_terms(logits, labels, temperature=20.0, distill_weight=0.1, multiplier=100.0)
    target = virtual_teacher(logits, labels, 0.99, 20.0).exp()[0].tolist()
    assert target == pytest.approx([0.32781695, 0.32781695, 0.34436611], abs=5e-9)
    assert found["reg"].item() / 0.1 == pytest.approx(10.86050798, abs=5e-9)
    assert (found["ce"] + found["reg"]).item() == pytest.approx(3.25289617, abs=5e-9)


def test_tfkd_reg_zero_where_the_student_is_the_virtual_teacher():
    labels = torch.tensor([0, 3])
    logits = virtual_teacher(torch.zeros(2, 5, dtype=torch.float64), labels, 0.9, 2.0) + 4
    found = tfkd_reg_terms(logits, labels, temperature=2.0, correct_prob=0.9)
    torch.testing.assert_close(found["reg"], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("setting", [{"distill_weight": 1.1}, {"correct_prob": -0.1}])
def test_tfkd_reg_refuses_settings_without_meaning(setting):
    with pytest.raises(ConfigError, match=f"method.{next(iter(setting))} must be between 0 and 1"):
        TfKDReg(**setting)
