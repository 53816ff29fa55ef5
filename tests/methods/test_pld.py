import pytest
import torch

from kdbench.methods.pld import PLD, pld_loss
from support.logit_batches import LABELS, K, logits, terms_of


def test_matches_the_formula_by_hand():
    student, teacher = logits(0), logits(1)
    expected = []
    for own, theirs, y in zip(student, teacher, LABELS.tolist(), strict=True):
        order = [y] + [k for k in theirs.argsort(descending=True).tolist() if k != y]
        p = torch.softmax(theirs, dim=0)
        expected.append(
            sum(
                p[k] * (own[order[place:]].exp().sum().log() - own[k])
                for place, k in enumerate(order)
            ).item()
        )
    assert pld_loss(student, teacher, LABELS, 1.0).tolist() == pytest.approx(expected, rel=1e-9)


def test_its_first_place_is_the_label_s_cross_entropy():
    """A teacher that is certain of the label leaves the cross-entropy alone."""
    teacher = torch.full((6, K), -1e4).double().scatter(1, LABELS.unsqueeze(1), 0.0)
    terms = terms_of(PLD(), logits(0), teacher)
    expected = torch.nn.functional.cross_entropy(logits(0), LABELS, reduction="none")
    torch.testing.assert_close(terms["pld"], expected)
    assert torch.equal(terms["ce"], torch.zeros(6))


def test_its_gradient_is_exact():
    student = logits(0).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: pld_loss(z, logits(1), LABELS, 1.0), student)
