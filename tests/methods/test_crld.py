import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import cross_entropy, kd_loss
from kdbench.methods.crld import CRLD
from support.logit_batches import LABELS, logits, terms_of

WEAK, STRONG = logits(0), logits(1)
TEACHER = torch.stack([logits(2), logits(3)])


def test_matches_the_formula_by_hand():
    """Within the views the weak view's mask decides, across them the strong view's."""
    method = CRLD(weak_threshold=0.8, strong_threshold=0.6)
    terms = terms_of(method, torch.stack([WEAK, STRONG]), TEACHER)
    certain = torch.softmax(TEACHER, dim=-1).amax(dim=-1)
    weak_mask, strong_mask = (certain[0] >= 0.8).double(), (certain[1] >= 0.6).double()
    assert 0 < weak_mask.sum() < 6
    assert 0 < strong_mask.sum() < 6
    within = kd_loss(WEAK, TEACHER[0], 4.0) + kd_loss(STRONG, TEACHER[1], 4.0)
    cross = kd_loss(STRONG, TEACHER[0], 4.0) + kd_loss(WEAK, TEACHER[1], 4.0)
    label = cross_entropy(WEAK, LABELS) + cross_entropy(STRONG, LABELS)
    for name, expected in (
        ("ce", label), ("within", 2 * weak_mask * within), ("cross", 0.5 * strong_mask * cross)
    ):  # fmt: skip
        torch.testing.assert_close(terms[name].mean(), expected.mean())


def test_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.weak_threshold must be from 0 to 1, not 2"):
        CRLD(weak_threshold=2.0)
