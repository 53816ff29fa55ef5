"""ShuffleNet V1 with three groups for small images, as RepDistiller and mdistiller train it.

Zhang et al., "ShuffleNet: An Extremely Efficient CNN for Mobile Devices", 2018. Departures of the
released zoo, kept here: a 1x1 stem without stride or max-pool, a ReLU after the depthwise
convolution as well, and a first bottleneck as wide as a quarter of its own 216 output channels.
stageN is after the ReLU that ends a unit, stageN_pre is the sum or concatenation before it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.networks.layers import (
    THREE_STAGES,
    channel_shuffle,
    conv_bn,
    with_taps,
)
from kdbench.types import Output

GROUPS = 3
STEM = 24
STAGES = ((240, 4), (480, 8), (960, 4))  # channels, units; the first unit halves the map


class Unit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; returns its result before the ReLU.

    With stride 2 the input is average-pooled and concatenated, else it is added.
    """

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        own = channels - in_channels if stride == 2 else channels
        hidden = own // 4
        self.halves = stride == 2
        self.groups = 1 if in_channels == STEM else GROUPS  # 24 channels are too few to group
        self.conv1, self.bn1 = conv_bn(in_channels, hidden, 1, groups=self.groups)
        self.conv2, self.bn2 = conv_bn(hidden, hidden, 3, stride, groups=hidden)
        self.conv3, self.bn3 = conv_bn(hidden, own, 1, groups=GROUPS)

    def forward(self, feature: Tensor) -> Tensor:
        """[B, C, H, W] after a ReLU -> the sum or concatenation before one."""
        hidden = channel_shuffle(F.relu(self.bn1(self.conv1(feature))), self.groups)
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        result = self.bn3(self.conv3(hidden))
        if self.halves:
            return torch.cat([result, F.avg_pool2d(feature, 3, stride=2, padding=1)], dim=1)
        return result + feature


class ShuffleV1(nn.Module):
    """949,258 parameters with 100 classes; torch's default initialisation."""

    TAPS = THREE_STAGES

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, STEM, 1)
        widths = (STEM, *(channels for channels, _ in STAGES))
        self.layer1, self.layer2, self.layer3 = (
            _stage(width, channels, units)
            for width, (channels, units) in zip(widths, STAGES, strict=False)
        )
        self.linear = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Output:
        """[B, C, H, W] -> logits [B, K] and TAPS."""
        return self.resume(0, F.relu(self.bn1(self.conv1(images))))

    def resume(self, stage: int, feature: Tensor) -> Output:
        """Run on from a stage's map (0 is the stem), and return the output with the later taps."""
        start, stages = feature, []
        for layer in (self.layer1, self.layer2, self.layer3)[stage:]:
            for unit in layer:
                before = unit(feature)
                feature = F.relu(before)
            stages.append((feature, before))
        return with_taps(self.linear, start, stages, feature, stage)


def _stage(in_channels: int, channels: int, units: int) -> nn.Sequential:
    first = Unit(in_channels, channels, stride=2)
    return nn.Sequential(first, *(Unit(channels, channels, stride=1) for _ in range(units - 1)))
