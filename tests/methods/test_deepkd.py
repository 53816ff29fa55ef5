import pytest
import torch
from torch import nn

from kdbench.errors import ConfigError
from kdbench.losses import dkd_losses
from kdbench.methods.deepkd import DeepKD, deepkd_losses, top_classes
from kdbench.methods.dkd import DKD
from kdbench.training.optimizer import Optimizer
from kdbench.training.schedule import Schedule
from kdbench.types import Losses, NetworkProbe, Probe
from support.logit_batches import LABELS, K, check_warm_up, logits, terms_of

LR, MOMENTUM, DECAY = 0.05, 0.9, 0.1


def test_without_top_k_its_terms_are_dkd_s():
    student, teacher = logits(0), logits(1)
    found, expected = (terms_of(method, student, teacher) for method in (DeepKD(), DKD()))
    for name, term in expected.items():
        torch.testing.assert_close(found[name], term)
    check_warm_up(DeepKD(), 20, "tckd", "nckd")


@pytest.mark.parametrize("top_k", [2, 4, K])
def test_top_k_leaves_the_teacher_s_first_classes(top_k):
    student, teacher = logits(0), logits(1)
    _, nckd = deepkd_losses(student, teacher, LABELS, 2.0, top_k)
    for row, label in enumerate(LABELS.tolist()):
        kept = [k for k in teacher[row].argsort(descending=True).tolist()[:top_k] if k != label]
        p, q = (torch.softmax(z[row, kept] / 2, dim=0) for z in (teacher, student))
        expected = 4 * (p * (p / q).log()).sum().item()
        assert nckd[row].item() == pytest.approx(expected, rel=1e-9, abs=1e-14)
    assert not top_classes(teacher, LABELS, top_k).gather(1, LABELS.unsqueeze(1)).any()


def test_every_class_is_dkd_s_non_target():
    student, teacher = logits(0), logits(1)
    _, nckd = deepkd_losses(student, teacher, LABELS, 2.0, K)
    torch.testing.assert_close(nckd, dkd_losses(student, teacher, LABELS, 2.0)[1])


@pytest.mark.parametrize(
    ("momenta", "expected"),
    [("intended", (0.975, 0.825, 0.95)), ("released", (0.825, 0.825, 0.95))],
)
def test_each_gradient_has_its_momentum(momenta, expected):
    """v_i <- m_i v_i + g_i, w <- w - lr sum v_i, weight decay with the label's gradient."""
    network = nn.Module()
    network.weight = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    schedule = Schedule(1, 1, LR, [], momentum=MOMENTUM, weight_decay=DECAY)
    training = Optimizer(schedule, network, DeepKD(momenta))
    weight, buffers = 1.0, [0.0] * 3
    for step in range(4):
        w = network.weight
        parts = (w**2, 5 * w, w**3)
        training.update(Losses(parts[0], parts[1] + parts[2], parts))
        gradients = [2 * weight + DECAY * weight, 5.0, 3 * weight**2]
        moved = zip(buffers, expected, gradients, strict=True)
        buffers = [b * m + g if step else g for b, m, g in moved]
        weight -= LR * sum(buffers)
        assert network.weight.item() == pytest.approx(weight, rel=1e-12)


def test_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.top_k must be 0 or above 1, not 1"):
        DeepKD(top_k=1)
    probe = Probe(NetworkProbe({}), (NetworkProbe({}),), K, LABELS)
    with pytest.raises(ConfigError, match=r"method.top_k=11 is more than the 10 classes"):
        DeepKD(top_k=K + 1).setup(probe)
