"""MobileNetV2 of half width for small images, as RepDistiller and mdistiller train it.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018. Departures of the
released zoo, kept here: width 0.5 except for the last 1280 channels, ReLU (the paper: ReLU6), the
second group has stride 1 (the paper: 2), and the first block has an expansion of factor 1.
A block's output is linear, so there is no activation to stand before: stageN_pre is stageN.
"""

from torch import Tensor, nn

from kdbench.networks.layers import (
    FOUR_STAGES,
    conv_bn,
    init_classifier,
    init_convolutions,
    with_taps,
)
from kdbench.types import Output

STEM, LAST = 16, 1280
GROUPS = (  # expansion, channels, blocks, stride of the first block
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
STAGE_ENDS = (1, 2, 4, 6)  # the groups that end a stage, from 0


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1; a shortcut where the shape stays."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int):
        super().__init__()
        hidden = in_channels * expansion
        self.has_shortcut = stride == 1 and in_channels == channels
        self.conv = nn.Sequential(
            *conv_bn(in_channels, hidden, 1),
            nn.ReLU(),
            *conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU(),
            *conv_bn(hidden, channels, 1),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """[B, C, H, W], without an activation at its end."""
        return feature + self.conv(feature) if self.has_shortcut else self.conv(feature)


class MobileNetV2(nn.Module):
    """812,836 parameters with 100 classes; the last map has a sixteenth of the image's side."""

    TAPS = FOUR_STAGES

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        self.conv1 = nn.Sequential(*conv_bn(in_channels, STEM, 3, stride=2), nn.ReLU())
        self.blocks = nn.Sequential()
        width = STEM
        for expansion, channels, blocks, stride in GROUPS:
            first = InvertedResidual(width, channels, expansion, stride)
            rest = (InvertedResidual(channels, channels, expansion, 1) for _ in range(blocks - 1))
            self.blocks.append(nn.Sequential(first, *rest))
            width = channels
        self.conv2 = nn.Sequential(*conv_bn(width, LAST, 1), nn.ReLU())
        linear = nn.Linear(LAST, num_classes)
        self.classifier = nn.Sequential(linear)
        init_convolutions(self)
        init_classifier(linear)

    def forward(self, images: Tensor) -> Output:
        """[B, C, H, W] -> logits [B, K] and TAPS."""
        return self.resume(0, self.conv1(images))

    def resume(self, stage: int, feature: Tensor) -> Output:
        """Run on from a stage's map (0 is the stem), and return the output with the later taps."""
        start, stages = feature, []
        first = STAGE_ENDS[stage - 1] + 1 if stage > 0 else 0
        for number, group in enumerate(self.blocks[first:], start=first):
            feature = group(feature)
            if number in STAGE_ENDS:
                stages.append((feature, feature))
        return with_taps(self.classifier, start, stages, self.conv2(feature), stage)
