import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import dkd_losses, kd_loss
from kdbench.methods.base import Method
from kdbench.methods.dist import DIST
from kdbench.methods.dkd import DKD
from kdbench.methods.fitnet import FitNet
from kdbench.methods.kd import KD
from kdbench.methods.logit_standardization import LogitStandardization
from kdbench.methods.mlkd import MLKD
from kdbench.methods.normkd import NormKD
from support.logit_batches import LABELS, logits, terms_of


def test_over_kd_it_is_logit_standardization_weighted_by_the_teacher_s_variance():
    student, teacher = logits(0), logits(1)
    found = terms_of(NormKD(KD(2.0, 0.1, 0.9)), student, teacher)
    plain = terms_of(LogitStandardization(KD(2.0, 0.1, 0.9), eps=1e-300), student, teacher)
    torch.testing.assert_close(found["kd"], teacher.var(dim=1) * plain["kd"])
    torch.testing.assert_close(found["ce"], plain["ce"])


def test_each_sample_has_its_own_temperatures():
    student, teacher = logits(0), logits(1)
    kd = terms_of(NormKD(KD(2.0, kd_weight=1.0)), student, teacher)["kd"]
    dkd = terms_of(NormKD(DKD(2.0, nckd_weight=1.0, warmup_epochs=1)), student, teacher)
    for row in range(len(LABELS)):
        own, theirs = student[row : row + 1], teacher[row : row + 1]
        t_own, t_theirs = 2 * own.std(), 2 * theirs.std()
        assert kd[row] == pytest.approx(
            (t_theirs**2 * kd_loss(own / t_own, theirs / t_theirs, 1.0)).item(), rel=1e-9
        )
        parts = dkd_losses(own / t_own, theirs / t_theirs, LABELS[row : row + 1], 1.0)
        for name, part in zip(("tckd", "nckd"), parts, strict=True):
            assert dkd[name][row] == pytest.approx((t_theirs**2 * part).item(), rel=1e-9)


def test_logits_without_a_deviation_are_finite():
    student = torch.zeros(6, 10, requires_grad=True)
    loss = terms_of(NormKD(KD(2.0)), student, torch.zeros(6, 10))["kd"]
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("inner", [FitNet(), MLKD()])
def test_refuses_what_it_cannot_normalise(inner: Method):
    with pytest.raises(ConfigError, match="one teacher on one view: choose kd or dkd"):
        NormKD(inner)


def test_refuses_terms_without_samples():
    with pytest.raises(ConfigError, match="term 'intra' couples the batch"):
        terms_of(NormKD(DIST()), logits(0), logits(1))
