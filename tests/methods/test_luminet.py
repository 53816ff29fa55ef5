import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods.luminet import LumiNet, perception
from support.logit_batches import check_warm_up, logits, terms_of


def test_matches_the_formula_by_hand():
    student, teacher = logits(0), logits(1)
    tall = []
    for z in (student, teacher):
        columns = [
            [(value - mean) / (sum((v - mean) ** 2 for v in column) / len(column) + 1e-5) ** 0.5
             for value in column]
            for column, mean in ((c, sum(c) / len(c)) for c in z.T.tolist())
        ]  # fmt: skip
        tall.append(torch.tensor(columns).double().T)
    own, theirs = (torch.softmax(h / 4, dim=1) for h in tall)
    expected = 33**2 * (theirs * (theirs / own).log()).sum(dim=1).mean()
    found = terms_of(LumiNet(), student, teacher)["luminet"]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_scale_and_offset_of_a_class_do_not_matter():
    student, teacher = logits(0), logits(1)
    moved = student * torch.linspace(1, 3, 10).double() + torch.linspace(-5, 5, 10).double()
    torch.testing.assert_close(perception(moved, 1e-12), perception(student, 1e-12))
    first, second = (terms_of(LumiNet(eps=1e-12), z, teacher)["luminet"] for z in (student, moved))
    torch.testing.assert_close(first, second)


def test_the_warm_up_spares_the_label_term():
    check_warm_up(LumiNet(), 20, "luminet")


def test_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.temperature must be above 0"):
        LumiNet(temperature=0.0)
