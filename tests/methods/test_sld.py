import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import kd_loss
from kdbench.methods.sld import SLD, swapped
from support.logit_batches import LABELS, logits, terms_of


def test_a_wrong_top_changes_places_with_the_label():
    scores = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    expected = torch.tensor([[1.0, 3.0, 2.0], [0.0, 5.0, 4.0]])
    assert torch.equal(swapped(scores, torch.tensor([1, 1])), expected)


@pytest.mark.parametrize("epoch", [150.0, 151.0])
def test_matches_the_formula_by_hand(epoch):
    student, teacher = torch.stack([logits(0), logits(1)]), torch.stack([logits(2), logits(3)])
    expected = 0.0
    for own, theirs in zip(student, teacher, strict=True):
        for temperature in range(1, 7):
            expected += kd_loss(own, swapped(theirs, LABELS), temperature).mean()
            if epoch > 150:
                expected += kd_loss(own, swapped(own, LABELS), temperature).mean()
    found = terms_of(SLD(), student, teacher, epoch=epoch)
    torch.testing.assert_close(found["swap"].mean(), 0.9 * expected)


def test_the_gradient_runs_through_the_swapped_student_too():
    student, teacher = torch.stack([logits(0), logits(1)]), torch.stack([logits(2), logits(3)])

    def gradient(epoch):
        own = student.clone().requires_grad_()
        terms_of(SLD(), own, teacher, epoch=epoch)["swap"].mean().backward()
        return own.grad

    fixed = student.clone().requires_grad_()
    for view in (0, 1):
        for temperature in range(1, 7):
            theirs = swapped(student[view], LABELS)
            (0.9 * kd_loss(fixed[view], theirs, temperature)).mean().backward()
    assert not torch.allclose(gradient(200.0) - gradient(1.0), fixed.grad, rtol=0.01)


def test_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.temperatures must be above 0"):
        SLD(temperatures=[1.0, 0.0])
