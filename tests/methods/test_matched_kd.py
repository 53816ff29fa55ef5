import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import kd_loss
from kdbench.methods.dkd import DKD
from kdbench.methods.fitnet import FitNet
from kdbench.methods.kd import KD
from kdbench.methods.luminet import LumiNet
from kdbench.methods.matched_kd import MatchedKD
from kdbench.methods.mlkd import MLKD
from support.logit_batches import logits, terms_of


def gradient_norm(method, student, teacher) -> float:
    """Of the distillation terms after every warm-up."""
    own = student.clone().requires_grad_()
    terms = terms_of(method, own, teacher)
    sum(term.mean() for name, term in terms.items() if name != "ce").backward()
    return own.grad.norm().item()


def test_a_heavier_kd_is_matched_by_its_own_weight():
    method = MatchedKD(KD(4.0, 0.3, 2.7))
    student, teacher = logits(0), logits(1)
    terms_of(method, student, teacher, epoch=1.0)
    terms = terms_of(method, student, teacher, epoch=2.0)
    torch.testing.assert_close(terms["kd"], 2.7 * kd_loss(student, teacher, 4.0), rtol=1e-5, atol=0)
    torch.testing.assert_close(terms["ce"], terms_of(method.inner, student, teacher)["ce"])


@pytest.mark.parametrize("inner", [LumiNet(), DKD()])
def test_the_gradients_of_the_first_epoch_are_as_large_on_average(inner):
    method = MatchedKD(inner, temperature=2.0)
    steps = [(logits(2 * i), logits(2 * i + 1)) for i in range(3)]
    for student, teacher in steps:
        terms = terms_of(method, student, teacher, epoch=1.0)
        torch.testing.assert_close(terms["kd"], 0.9 * kd_loss(student, teacher, 2.0))
    wanted = sum(gradient_norm(inner, *step) for step in steps)
    of_kd = sum(gradient_norm(KD(2.0, kd_weight=1.0), *step) for step in steps)
    for _ in range(2):  # and then it stays
        terms = terms_of(method, *steps[0], epoch=2.0)
        expected = wanted / of_kd * kd_loss(*steps[0], 2.0)
        torch.testing.assert_close(terms["kd"], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("inner", [FitNet(), MLKD()])
def test_refuses_what_it_cannot_measure(inner):
    with pytest.raises(ConfigError, match="must read the logits of one teacher on one view"):
        MatchedKD(inner)
