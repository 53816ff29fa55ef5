"""ShuffleNet V2 (1x) for 32 to 64 pixels, as Tf-KD and DR-KD train it.

Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", 2018. It is
not RepDistiller's `shufflenetv2`: the stem is 3x3 and without ReLU, a unit that halves the map
keeps its channels up to the last 1x1, and there are biases before BN.
stageN is after a unit's ReLU and channel shuffle. stageN_pre has the same channels before that
ReLU and in their order before the shuffle: the untouched half first, then the new one.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.networks.layers import THREE_STAGES, biased_conv_bn, channel_shuffle, with_taps
from kdbench.types import Output

STEM, LAST = 24, 1024
STAGES = ((116, 3), (232, 7), (464, 3))  # channels, units after the one that halves the map


def _branch(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    """1x1, depthwise 3x3, 1x1, without the last ReLU."""
    return nn.Sequential(
        *biased_conv_bn(in_channels, in_channels, 1),
        nn.ReLU(),
        *biased_conv_bn(in_channels, in_channels, 3, stride, groups=in_channels),
        *biased_conv_bn(in_channels, channels, 1),
    )


class Unit(nn.Module):
    """A branch on one half of the channels; the other half passes untouched."""

    def __init__(self, channels: int):
        super().__init__()
        self.residual = _branch(channels // 2, channels // 2, 1)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] -> the same shape after ReLU and shuffle, and before both."""
        untouched, hidden = feature.chunk(2, dim=1)
        before = self.residual(hidden)
        active = torch.cat([untouched, F.relu(before)], dim=1)
        return channel_shuffle(active, 2), torch.cat([untouched, before], dim=1)


class HalvingUnit(nn.Module):
    """Two branches with stride 2 over all channels."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.residual = _branch(in_channels, channels // 2, 2)
        self.shortcut = nn.Sequential(
            *biased_conv_bn(in_channels, in_channels, 3, 2, groups=in_channels),
            *biased_conv_bn(in_channels, channels // 2, 1),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, channels, H / 2, W / 2] after ReLU and shuffle."""
        joined = torch.cat([self.shortcut(feature), self.residual(feature)], dim=1)
        return channel_shuffle(F.relu(joined), 2)


class ShuffleNetV2(nn.Module):
    """Stem, three stages that halve the map, 1x1, pooling; torch's default initialisation."""

    TAPS = THREE_STAGES

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        self.pre = nn.Sequential(*biased_conv_bn(in_channels, STEM, 3))
        self.stages = nn.ModuleList()
        width = STEM
        for channels, units in STAGES:
            halving = HalvingUnit(width, channels)
            self.stages.append(nn.ModuleList([halving, *(Unit(channels) for _ in range(units))]))
            width = channels
        self.last = nn.Sequential(*biased_conv_bn(width, LAST, 1), nn.ReLU())
        self.linear = nn.Linear(LAST, num_classes)

    def forward(self, images: Tensor) -> Output:
        """[B, C, H, W] -> logits [B, K] and TAPS."""
        return self.resume(0, self.pre(images))

    def resume(self, stage: int, feature: Tensor) -> Output:
        """Run on from a stage's map (0 is the stem), and return the output with the later taps."""
        start, stages = feature, []
        for layer in self.stages[stage:]:
            assert isinstance(layer, nn.ModuleList)
            halving, *units = layer
            feature = halving(feature)
            for unit in units:
                feature, before = unit(feature)
            stages.append((feature, before))
        return with_taps(self.linear, start, stages, self.last(feature), stage)
