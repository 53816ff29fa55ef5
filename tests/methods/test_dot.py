import pytest
import torch
from torch import nn

from kdbench.errors import ConfigError
from kdbench.methods.base import Method
from kdbench.methods.ce import CE
from kdbench.methods.dot import DOT
from kdbench.methods.kd import KD
from kdbench.training.optimizer import Optimizer
from kdbench.training.schedule import Schedule
from kdbench.types import Losses

LR, MOMENTUM, DECAY, GAP = 0.05, 0.9, 0.1, 0.075


class Three(nn.Module):
    """A weight that both losses reach, one that only the label's does, and one for the other."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.label, self.teacher = (
            nn.Parameter(torch.tensor([value], dtype=torch.float64)) for value in (1.0, 2.0, 3.0)
        )

    def losses(self) -> Losses:
        label = (self.both**2 + 3 * self.label**2).sum()
        other = (5 * self.both + self.teacher**3).sum()
        return Losses(label, other, (label, other))


def optimizer(network: nn.Module, gap: float) -> Optimizer:
    method = DOT(KD(), gap) if gap > 0 else Method()
    schedule = Schedule(1, 1, LR, [], momentum=MOMENTUM, weight_decay=DECAY)
    return Optimizer(schedule, network, method)


def test_follows_the_two_buffers_by_hand():
    network = Three()
    training = optimizer(network, GAP)
    both, label, teacher = 1.0, 2.0, 3.0
    buffers = [0.0] * 4
    for step in range(4):
        training.update(network.losses())
        gradients = [5.0, 2 * both + DECAY * both]
        gradients += [6 * label + DECAY * label, 3 * teacher**2 + DECAY * teacher]
        momenta = [MOMENTUM + GAP, MOMENTUM - GAP, MOMENTUM, MOMENTUM]
        moved = zip(buffers, momenta, gradients, strict=True)
        buffers = [b * m + g if step else g for b, m, g in moved]
        both -= LR * (buffers[0] + buffers[1])
        label, teacher = label - LR * buffers[2], teacher - LR * buffers[3]
        found = [p.item() for p in (network.both, network.label, network.teacher)]
        assert found == pytest.approx([both, label, teacher], rel=1e-12)


def test_without_a_gap_it_is_sgd():
    """v_kd + v_task with equal momenta is the one buffer of plain SGD."""
    dot, sgd = Three(), Three()
    plain, training = optimizer(sgd, 0.0), optimizer(dot, 1e-15)
    for _ in range(5):
        plain.update(sgd.losses())
        training.update(dot.losses())
    for one, other in zip(dot.parameters(), sgd.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_needs_both_losses():
    network = Three()
    label = network.losses().label
    with pytest.raises(ConfigError, match=r"'distillation': choose a method\.inner with a label"):
        optimizer(network, GAP).update(Losses(label, None, (label, None)))
    with pytest.raises(ConfigError, match="reads no teacher"):
        DOT(CE())
    with pytest.raises(ConfigError, match=r"method.momentum_gap must be between 0 and 1"):
        DOT(KD(), momentum_gap=0.0)
