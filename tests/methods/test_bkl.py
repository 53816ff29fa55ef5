import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import kd_loss
from kdbench.methods.bkl import BKL, bkl_loss
from support.logit_batches import logits, terms_of


def test_matches_the_formula_by_hand():
    student, teacher = logits(0), logits(1)
    q, p = torch.softmax(student / 2, dim=1), torch.softmax(teacher / 2, dim=1)
    both = 0.3 * p * (p / q).log() + 0.7 * q * (q / p).log()
    expected = 4 * (both / ((q**2 + p**2) ** 0.25 + 1e-12)).sum(dim=1)
    torch.testing.assert_close(bkl_loss(student, teacher, 2.0, 0.3, 0.5, 1e-12), expected)
    found = terms_of(BKL(2.0, alpha=0.3), student, teacher)
    torch.testing.assert_close(found["bkl"], 0.9 * expected)


def test_contains_kl_and_its_reverse():
    student, teacher = logits(0), logits(1)
    settings = {"temperature": 2.0, "beta": 1.0, "eps": 1e-300}
    forward = bkl_loss(student, teacher, alpha=1.0, **settings)
    torch.testing.assert_close(forward, kd_loss(student, teacher, 2.0))
    reverse = bkl_loss(student, teacher, alpha=0.0, **settings)
    torch.testing.assert_close(reverse, kd_loss(teacher, student, 2.0))


def test_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.beta must be from 0 to 1, not 1.5"):
        BKL(beta=1.5)
