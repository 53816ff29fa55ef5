"""Overhaul of feature distillation (Heo et al., ICCV 2019, arXiv 1904.01866)."""

import math

import torch
from torch import Tensor, nn

from kdbench.errors import ConfigError
from kdbench.methods.base import Method, check_weights
from kdbench.networks.adapters import check_map, match_smaller, paired_maps, stages_of
from kdbench.types import Affine, Batch, Output, Probe

RARE = 0.001  # below this share of negative values the margin is -3 standard deviations


def negative_mean(norm: Affine) -> Tensor:
    """The margin m_c = E[t | t < 0] of a BN's output t ~ N(bias_c, weight_c^2), before its ReLU.

    m = mu - s phi(mu / s) / Phi(-mu / s), or -3 s where Phi(-mu / s) is 0.001 or less.
    Shapes: weight and bias [C] -> [C, 1, 1]. Source: section 3; the second case is the code's.
    """
    mean, deviation = norm.bias.double(), norm.weight.double().abs()
    ratio = mean / deviation
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    share = torch.special.ndtr(-ratio)
    margin = torch.where(share > RARE, mean - deviation * density / share, -3 * deviation)
    return margin.to(norm.bias.dtype)[:, None, None]


def partial_l2(connected: Tensor, teacher_map: Tensor, margin: Tensor) -> Tensor:
    """Sum over C, H, W of (c - max(t, m))^2 where c > max(t, m) or t > 0, of each sample.

    A student below a negative target is left alone: the ReLU would hide it.
    Shapes: connected and teacher_map [B, C, H, W], margin [C, 1, 1] -> [B]. Source: section 3.
    """
    target = torch.maximum(teacher_map, margin)
    counts = (connected > target) | (teacher_map > 0)
    return ((connected - target).square() * counts).sum(dim=(1, 2, 3))


def connector(student_channels: int, teacher_channels: int) -> nn.Sequential:
    """A 1x1 convolution without bias, from N(0, sqrt(2 / C_t)), and BN."""
    conv = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(teacher_channels))


class OFD(Method):
    """L = ce_weight CE + ofd_weight sum_l 2^-(n-1-l) sum_{C,H,W} partial L2 at stage l of n.

    Both maps are taken before the activation, the student's goes through a connector (1x1
    convolution and BN, trained with it), the teacher's through a margin ReLU (section 3).

    Departures: the teacher is in eval mode; the authors' code and mdistiller leave it in train
    mode, where its BN reads batch statistics and its running ones drift.
    The margins describe the last BN of a stage also where a residual sum follows, as theirs do.
    Stages pair by number; mdistiller pairs them from the deepest, but not its margins. The larger
    map is average-pooled to the smaller; mdistiller always resizes the teacher's.
    """

    soft_labels = True

    def __init__(self, ce_weight: float = 1.0, ofd_weight: float = 1e-3) -> None:
        super().__init__()
        check_weights(ce_weight=ce_weight, ofd_weight=ofd_weight)
        self.ce_weight = ce_weight
        self.ofd_weight = ofd_weight

    def setup(self, probe: Probe) -> None:
        """Build connectors from the shapes and margins from the teacher's BN.

        Raises:
            ConfigError: the teacher does not say which BN precede its stages' last ReLU.
        """
        teacher = probe.teachers[0]
        if not teacher.stage_norms:
            raise ConfigError(
                "method=ofd needs the BN before each stage's last ReLU, which this teacher does "
                "not declare: choose one of the families resnet, wrn, vgg, ResNet"
            )
        taps = (f"{stage}_pre" for stage in stages_of(teacher))
        norms = dict(zip(taps, teacher.stage_norms, strict=True))
        self.stages = [own for own, _ in paired_maps(probe, "_pre", "_pre")]
        self.taps = tuple(self.stages)
        self.connectors = nn.ModuleDict()
        for stage in self.stages:
            student_channels, teacher_channels = (
                check_map(network, stage)[0] for network in (probe.student, teacher)
            )
            self.connectors[stage] = connector(student_channels, teacher_channels)
            self.register_buffer(f"margin_{stage}", negative_mean(norms[stage]))

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "ofd" [B]."""
        (teacher,) = teachers
        distance = torch.zeros_like(student.logits[:, 0])
        for depth, stage in enumerate(reversed(self.stages)):
            connected = self.connectors[stage](student.taps[stage])
            connected, target = match_smaller(connected, teacher.taps[stage])
            margin = getattr(self, f"margin_{stage}")
            distance = distance + partial_l2(connected, target, margin) / 2**depth
        return {"ce": self.label_term(batch, student), "ofd": self.ofd_weight * distance}
