import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import ab_divergence, dkd_losses, kd_loss, kl_divergence, ttm_loss
from kdbench.methods.ab_dkd import ABDKD
from kdbench.methods.ab_ttm import ABTTM
from kdbench.methods.abkd import ABKD
from support.logit_batches import LABELS, check_warm_up, logits, terms_of

P, Q = (torch.log_softmax(logits(seed), dim=1) for seed in (0, 1))


def test_matches_the_formula_by_hand():
    p, q = P.exp(), Q.exp()
    a, b = 0.8, 0.3
    inside = p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)
    torch.testing.assert_close(ab_divergence(P, Q, a, b), -inside.sum(dim=1) / (a * b))


def test_its_limits_are_the_known_divergences():
    torch.testing.assert_close(ab_divergence(P, Q, 1, 0), kl_divergence(P, Q))
    torch.testing.assert_close(ab_divergence(P, Q, 0, 1), kl_divergence(Q, P))
    torch.testing.assert_close(ab_divergence(P, Q, 0, 0), (P - Q).square().sum(dim=1) / 2)


@pytest.mark.parametrize(("a", "b"), [(1, 0), (0.5, 0), (0, 0.7), (0, 1), (0.6, -0.6), (0, 0)])
def test_its_special_cases_are_where_the_formula_leads(a, b):
    """The released code divides once too little at (0.5, 0), (0, 0.7) and (0.6, -0.6)."""
    near = ab_divergence(P, Q, a + 1e-5, b + 2e-5)
    torch.testing.assert_close(ab_divergence(P, Q, a, b), near, rtol=2e-3, atol=0)
    assert (ab_divergence(P, Q, a, b) > 0).all()


def test_its_forms_contain_the_plain_methods():
    student, teacher = logits(0), logits(1)
    kl = {"alpha": 1.0, "beta": 0.0}
    found = terms_of(ABKD(2.0, ab_weight=3.0, squared_temperature=True, **kl), student, teacher)
    torch.testing.assert_close(found["ab"], 3 * kd_loss(student, teacher, 2.0))
    found = terms_of(ABTTM(ab_weight=3.0, **kl), student, teacher)
    torch.testing.assert_close(found["ab"], 3 * ttm_loss(student, teacher, 0.1))
    found = terms_of(ABDKD(2.0, **kl), student, teacher)
    target, others = dkd_losses(student, teacher, LABELS, 2.0)
    torch.testing.assert_close(found["tckd"], target)
    torch.testing.assert_close(found["nckd"], 8 * others)


def test_the_warm_up_spares_the_label_term():
    check_warm_up(ABDKD(), 20, "tckd", "nckd")


def test_refuses_settings_without_meaning():
    for method in (ABKD, ABDKD, ABTTM):
        with pytest.raises(ConfigError, match=r"method.alpha must be a finite number"):
            method(alpha=float("nan"))
