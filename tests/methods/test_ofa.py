import pytest
import torch
from torch.nn import functional as F

from kdbench.errors import ConfigError
from kdbench.methods.ofa import OFA, ofa_loss
from kdbench.types import Batch, NetworkProbe, Output, Probe
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


CNN = {"stage1": [8, 16, 16], "stage2": [16, 8, 8], "stage3": [32, 4, 4], "stage4": [64, 2, 2]}
VIT = {name: [32, 28, 28] for name in CNN}


@pytest.mark.parametrize(("shapes", "tokens"), [(CNN, False), (VIT, True)])
def test_every_stage_has_an_exit_head_that_learns(shapes, tokens):
    method = OFA(exponent=1.5, stages=(1, 2, 3, 4), tokens=tokens)
    taps = {name: torch.Size(shape) for name, shape in shapes.items()}
    student = NetworkProbe(taps={**taps, "pooled": torch.Size([32 if tokens else 64])})
    teacher = NetworkProbe(taps={"pooled": torch.Size([96])})
    method.setup(Probe(student, (teacher,), 5, LABELS))
    features = {name: torch.randn(4, *shape, requires_grad=True) for name, shape in shapes.items()}
    labels = torch.tensor([0, 1, 2, 3])
    batch = Batch(torch.zeros(4), labels, torch.arange(4), torch.tensor(1.0))
    z, v = torch.randn(4, 5), torch.randn(4, 5)
    terms = method.eval()(batch, Output(z, features), (Output(v, {}),))
    heads = [method.heads[str(i)](features[f"stage{i}"]) for i in (1, 2, 3, 4)]
    expected = sum(ofa_loss(head, v, labels, 1.0, 1.5) for head in heads)
    torch.testing.assert_close(terms["exits"], expected)
    terms["exits"].sum().backward()
    assert all(feature.grad.abs().sum() > 0 for feature in features.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    wide = 32 if tokens else 96
    assert list(method.heads["4"][-1].weight.shape if not tokens else [5, wide]) == [5, wide]


def test_stages_that_are_none_are_one_line():
    with pytest.raises(ConfigError, match=r"method\.stages must rise from 1 to 4 at most"):
        OFA(stages=(2, 5))
