import torch
from torch.nn import functional as F

from kdbench.methods.ofa import OFA, ofa_loss
from support.logit_batches import LABELS, logits, terms_of


def test_with_exponent_1_it_is_the_soft_labels_cross_entropy():
    student, teacher = logits(0), logits(1)
    expected = F.cross_entropy(student, torch.softmax(teacher, dim=1), reduction="none")
    torch.testing.assert_close(ofa_loss(student, teacher, LABELS, 1.0, 1.0), expected)


def test_matches_the_formula_by_hand():
    student, teacher = logits(0), logits(1)
    p, q = torch.softmax(teacher / 2, dim=1), torch.softmax(student / 2, dim=1)
    expected = []
    for row, y in enumerate(LABELS.tolist()):
        weights = p[row] ** 1.5
        weights[y] = (1 + p[row, y]) ** 1.5 - 1
        expected.append(-(weights * q[row].log()).sum())
    found = terms_of(OFA(2.0, exponent=1.5, ofa_weight=2.0), student, teacher)["ofa"]
    torch.testing.assert_close(found, 2 * torch.stack(expected))
