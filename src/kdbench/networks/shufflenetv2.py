"""ShuffleNet V2 (1x) for small images, as RepDistiller and mdistiller train it.

Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", 2018.
Departures of the released zoo, kept here: a 1x1 stem without stride or max-pool, and a unit that
halves the map before the 3, 7, 3 others of a stage.
stageN is after a unit's ReLU and channel shuffle. stageN_pre has the same channels before that
ReLU and in their order before the shuffle: the untouched half first, then the new one.
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

STEM, LAST = 24, 1024
STAGES = ((116, 3), (232, 7), (464, 3))  # channels, units after the one that halves the map


class Unit(nn.Module):
    """1x1, depthwise 3x3, 1x1 on one half of the channels; the other half passes untouched."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1 = conv_bn(half, half, 1)
        self.conv2, self.bn2 = conv_bn(half, half, 3, groups=half)
        self.conv3, self.bn3 = conv_bn(half, half, 1)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] -> the same shape after ReLU and shuffle, and before both."""
        untouched, hidden = feature.chunk(2, dim=1)
        hidden = F.relu(self.bn1(self.conv1(hidden)))
        before = self.bn3(self.conv3(self.bn2(self.conv2(hidden))))
        active = torch.cat([untouched, F.relu(before)], dim=1)
        return channel_shuffle(active, 2), torch.cat([untouched, before], dim=1)


class HalvingUnit(nn.Module):
    """Two branches with stride 2 over all channels: depthwise 3x3, 1x1, and a unit's own three."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1 = conv_bn(in_channels, in_channels, 3, 2, groups=in_channels)
        self.conv2, self.bn2 = conv_bn(in_channels, half, 1)
        self.conv3, self.bn3 = conv_bn(in_channels, half, 1)
        self.conv4, self.bn4 = conv_bn(half, half, 3, 2, groups=half)
        self.conv5, self.bn5 = conv_bn(half, half, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, channels, H / 2, W / 2] after ReLU and shuffle."""
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(feature)))))
        right = F.relu(self.bn3(self.conv3(feature)))
        right = F.relu(self.bn5(self.conv5(self.bn4(self.conv4(right)))))
        return channel_shuffle(torch.cat([left, right], dim=1), 2)


class ShuffleV2(nn.Module):
    """1,355,528 parameters with 100 classes; torch's default initialisation."""

    TAPS = THREE_STAGES

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, STEM, 1)
        widths = (STEM, *(channels for channels, _ in STAGES))
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(HalvingUnit(width, channels), *(Unit(channels) for _ in range(units)))
            for width, (channels, units) in zip(widths, STAGES, strict=False)
        )
        self.conv2, self.bn2 = conv_bn(widths[-1], LAST, 1)
        self.linear = nn.Linear(LAST, num_classes)

    def forward(self, images: Tensor) -> Output:
        """[B, C, H, W] -> logits [B, K] and TAPS."""
        return self.resume(0, F.relu(self.bn1(self.conv1(images))))

    def resume(self, stage: int, feature: Tensor) -> Output:
        """Run on from a stage's map (0 is the stem), and return the output with the later taps."""
        start, stages = feature, []
        for layer in (self.layer1, self.layer2, self.layer3)[stage:]:
            halving, *units = layer
            feature = halving(feature)
            for unit in units:
                feature, before = unit(feature)
            stages.append((feature, before))
        last_map = F.relu(self.bn2(self.conv2(feature)))
        return with_taps(self.linear, start, stages, last_map, stage)
