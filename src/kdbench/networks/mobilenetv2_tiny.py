"""MobileNetV2 of full width for 32 to 64 pixels, as DOT (mdistiller), DR-KD and Tf-KD train it.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018. Departures of the
released code, kept here: a 1x1 stem that is padded, so that the map grows by two pixels, only three
groups that halve the map, no expansion dropped in the first block, biases before BN.
A block's output is linear, so there is no activation to stand before: stageN_pre is stageN.
"""

from torch import Tensor, nn

from kdbench.networks.layers import FOUR_STAGES, biased_conv_bn, with_taps
from kdbench.types import Output

STEM, LAST = 32, 1280
GROUPS = (  # expansion, channels, blocks, stride of the first block
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 1),
    (6, 320, 1, 1),
)
STAGE_ENDS = (1, 2, 4, 6)  # the groups that end a stage, from 0


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1; a shortcut where the shape stays."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int):
        super().__init__()
        hidden = in_channels * expansion
        self.has_shortcut = stride == 1 and in_channels == channels
        self.residual = nn.Sequential(
            *biased_conv_bn(in_channels, hidden, 1),
            nn.ReLU6(),
            *biased_conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(),
            *biased_conv_bn(hidden, channels, 1),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """[B, C, H, W], without an activation at its end."""
        residual = self.residual(feature)
        return feature + residual if self.has_shortcut else residual


class MobileNetV2Tiny(nn.Module):
    """2,497,480 parameters with 200 classes; torch's default initialisation."""

    TAPS = FOUR_STAGES

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        self.pre = nn.Sequential(
            nn.Conv2d(in_channels, STEM, 1, padding=1), nn.BatchNorm2d(STEM), nn.ReLU6()
        )
        self.groups = nn.Sequential()
        width = STEM
        for expansion, channels, blocks, stride in GROUPS:
            first = InvertedResidual(width, channels, expansion, stride)
            rest = (InvertedResidual(channels, channels, expansion, 1) for _ in range(blocks - 1))
            self.groups.append(nn.Sequential(first, *rest))
            width = channels
        self.last = nn.Sequential(*biased_conv_bn(width, LAST, 1), nn.ReLU6())
        self.linear = nn.Linear(LAST, num_classes)

    def forward(self, images: Tensor) -> Output:
        """[B, C, H, W] -> logits [B, K] and TAPS."""
        return self.resume(0, self.pre(images))

    def resume(self, stage: int, feature: Tensor) -> Output:
        """Run on from a stage's map (0 is the stem), and return the output with the later taps."""
        start, stages = feature, []
        first = STAGE_ENDS[stage - 1] + 1 if stage > 0 else 0
        for number, group in enumerate(self.groups[first:], start=first):
            feature = group(feature)
            if number in STAGE_ENDS:
                stages.append((feature, feature))
        return with_taps(self.linear, start, stages, self.last(feature), stage)
