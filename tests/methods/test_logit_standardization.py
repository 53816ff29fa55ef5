import statistics

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import cross_entropy
from kdbench.methods.base import Method
from kdbench.methods.dkd import DKD
from kdbench.methods.kd import KD
from kdbench.methods.logit_standardization import LogitStandardization, standardise
from kdbench.types import Batch, Output

LABELS = torch.tensor([0, 9, 4, 4, 1, 7])
BATCH = Batch(torch.empty(0), LABELS, torch.arange(6), torch.tensor(30.0))


def logits(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(6, 10, generator=generator, dtype=torch.float64) + 1


def terms(method: Method, student: torch.Tensor, teacher: torch.Tensor) -> dict:
    return method(BATCH, Output(student, {}), (Output(teacher, {}),))


def test_z_scores_each_row_with_the_unbiased_deviation():
    views = torch.stack([logits(0), logits(1)])
    found = standardise(views, eps=1e-7)
    for view, expected in zip(found.flatten(0, 1).tolist(), views.flatten(0, 1), strict=True):
        row = expected.tolist()
        mean, deviation = statistics.mean(row), statistics.stdev(row)
        assert view == pytest.approx([(z - mean) / (deviation + 1e-7) for z in row], rel=1e-12)


@pytest.mark.parametrize("inner", [KD, DKD])
def test_distillation_forgets_the_students_scale_and_shift_but_the_label_term_does_not(inner):
    method, student, teacher = LogitStandardization(inner(2.0)), logits(0), logits(1)
    before, after = terms(method, student, teacher), terms(method, 5 * student - 7, teacher)
    for name in set(before) - {"ce"}:
        torch.testing.assert_close(before[name], after[name], rtol=1e-6, atol=1e-9)
    expected = method.inner.ce_weight * cross_entropy(5 * student - 7, LABELS)
    torch.testing.assert_close(after["ce"], expected)


def test_named_terms_keep_raw_logits():
    student, teacher = logits(0), logits(1)
    mixed = terms(LogitStandardization(DKD(), raw_terms=["nckd"]), student, teacher)
    standardised = terms(LogitStandardization(DKD()), student, teacher)
    torch.testing.assert_close(mixed["tckd"], standardised["tckd"])
    torch.testing.assert_close(mixed["nckd"], terms(DKD(), student, teacher)["nckd"])
    with pytest.raises(ConfigError, match="has no term 'nkd'"):
        terms(LogitStandardization(DKD(), raw_terms=["nkd"]), student, teacher)


def test_equal_logits_have_a_finite_gradient():
    student = torch.zeros(6, 10, requires_grad=True)
    parts = terms(LogitStandardization(KD()), student, logits(1).float())
    sum(part.sum() for part in parts.values()).backward()
    assert student.grad.isfinite().all()


def test_refuses_an_inner_recipe_that_reads_features():
    hint = KD()
    hint.taps = ("stage2",)
    with pytest.raises(ConfigError, match=r"reads features \(stage2\)"):
        LogitStandardization(hint)
