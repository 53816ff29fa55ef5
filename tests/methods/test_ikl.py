import torch
from torch.nn import functional as F

from kdbench.losses import weighted_margins
from kdbench.methods.class_memory import ClassMemory
from kdbench.methods.gkl import GKL
from kdbench.methods.ikl import IKL
from kdbench.types import NetworkProbe, Probe
from support.logit_batches import LABELS, K, check_warm_up, logits, terms_of

PROBE = Probe(NetworkProbe({}), (NetworkProbe({}),), K, LABELS)


def pairs(difference, weights):
    """The sum over pairs of classes as it is written."""
    margins = difference.unsqueeze(2) - difference.unsqueeze(1)
    both = weights.unsqueeze(2) * weights.unsqueeze(1)
    return (both * margins.square()).sum(dim=(1, 2)) / 4


def test_the_pairs_are_a_variance():
    difference, weights = logits(0), logits(1).abs()
    torch.testing.assert_close(weighted_margins(difference, weights), pairs(difference, weights))


def test_matches_the_formulas_by_hand():
    student, teacher = logits(0), logits(1)
    soft = F.cross_entropy(student / 4, torch.softmax(teacher / 4, dim=1), reduction="none")
    weights = torch.softmax(teacher / 100, dim=1)
    terms = terms_of(IKL(), student, teacher)
    torch.testing.assert_close(terms["margin"], 8 * pairs(teacher - student, weights))
    torch.testing.assert_close(terms["soft"], soft)
    powers = torch.softmax(teacher / 4, dim=1) ** 0.3
    mass = (powers.unsqueeze(2) * powers.unsqueeze(1)).sum()
    terms = terms_of(GKL(gamma=0.3, class_memory=False), student, teacher)
    torch.testing.assert_close(terms["margin"], 16 * pairs(teacher - student, powers).sum() / mass)
    torch.testing.assert_close(terms["soft"], soft)


def test_the_warm_up_spares_the_label_term():
    check_warm_up(IKL(), 20, "margin", "soft")
    check_warm_up(GKL(class_memory=False), 20, "margin", "soft")


def test_the_memory_holds_the_epoch_before():
    memory = ClassMemory(3)
    first = torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.4, 0.0], [0.0, 0.2, 0.8]])
    labels = torch.tensor([0, 0, 2])
    uniform = torch.full((3, 3), 1 / 3)
    one, two, three = (torch.tensor(epoch) for epoch in (1.0, 2.0, 3.0))
    assert torch.equal(memory(one, labels, first), uniform)
    assert torch.equal(memory(one, labels, first), uniform)
    every = torch.tensor([0, 1, 2])
    means = torch.tensor([[0.7, 0.25, 0.05], [1 / 3] * 3, [0.0, 0.2, 0.8]])
    torch.testing.assert_close(memory(two, every, torch.eye(3)), means)
    torch.testing.assert_close(memory(two, every, torch.eye(3)), means)
    torch.testing.assert_close(memory(three, every, first), torch.eye(3))


def test_methods_read_the_memory_by_class():
    student, teacher = logits(0), logits(1)
    for method in (IKL(class_memory=True), GKL(gamma=1.0)):
        method.setup(PROBE)
        method.double()
        terms = terms_of(method, student, teacher, epoch=1.0)
        flat = torch.full((len(LABELS), K), 1 / K).double()
        expected = pairs(teacher - student, flat) * method.margin_weight / 20
        torch.testing.assert_close(terms["margin"].mean(), expected.mean(), rtol=1e-6, atol=0)
        assert len(method.memory.state_dict()) == 4
        terms = terms_of(method, student, teacher, epoch=30.0)
        soft = torch.softmax(teacher / method.weight_temperature, dim=1)
        same = LABELS.unsqueeze(1) == LABELS
        rows = (same.double() @ soft) / same.sum(dim=1, keepdim=True)
        expected = pairs(teacher - student, rows) * method.margin_weight
        torch.testing.assert_close(terms["margin"].mean(), expected.mean(), rtol=1e-6, atol=0)
