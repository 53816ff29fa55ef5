"""GoogLeNet with batch norm for small images, as Tf-KD and DR-KD train it.

Szegedy et al., "Going Deeper with Convolutions", 2015, table 1. Departures of the released code,
kept here: one 3x3 stem of 192 channels without pooling, two 3x3 for each 5x5, BN everywhere with
biases before it, no auxiliary classifiers, and Dropout2d of 0.4 before the classifier.
stageN is the last module before a pooling, stageN_pre its four branches before their last ReLU.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.networks.layers import THREE_STAGES, biased_conv_bn, with_taps
from kdbench.types import Output

STEM = 192
DROPOUT = 0.4
# 1x1; 3x3 and the 1x1 before it; the same for 5x5; the 1x1 after pooling
MODULES = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


class Inception(nn.Module):
    """Four branches side by side, returned before their last ReLU."""

    def __init__(self, in_channels: int, widths: tuple[int, int, int, int, int, int]):
        super().__init__()
        one, reduced_three, three, reduced_five, five, pooled = widths
        self.channels = one + three + five + pooled
        self.b1 = nn.Sequential(*biased_conv_bn(in_channels, one, 1))
        self.b2 = _chain(
            biased_conv_bn(in_channels, reduced_three, 1), _three(reduced_three, three)
        )
        self.b3 = _chain(
            biased_conv_bn(in_channels, reduced_five, 1),
            _three(reduced_five, five),
            _three(five, five),
        )
        self.b4 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), *biased_conv_bn(in_channels, pooled, 1)
        )

    def forward(self, feature: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, channels, H, W]."""
        branches = (self.b1, self.b2, self.b3, self.b4)
        return torch.cat([branch(feature) for branch in branches], dim=1)


def _three(in_channels: int, channels: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    return biased_conv_bn(in_channels, channels, 3)


def _chain(*pairs: tuple[nn.Conv2d, nn.BatchNorm2d]) -> nn.Sequential:
    """Convolutions with BN, a ReLU between them."""
    first, *rest = pairs
    return nn.Sequential(*first, *(part for pair in rest for part in (nn.ReLU(), *pair)))


class GoogLeNet(nn.Module):
    """Stem, nine modules with a pooling after the second and the seventh."""

    TAPS = THREE_STAGES

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        self.pre = nn.Sequential(*biased_conv_bn(in_channels, STEM, 3), nn.ReLU())
        self.stages = nn.ModuleList()
        width = STEM
        for rows in MODULES:
            stage = nn.ModuleList()
            for row in rows:
                module = Inception(width, row)
                stage.append(module)
                width = module.channels
            self.stages.append(stage)
        # The released code's Dropout2d, on a map of one position, also drops single numbers.
        self.classifier = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(width, num_classes))

    def forward(self, images: Tensor) -> Output:
        """[B, C, H, W] -> logits [B, K] and TAPS; "pooled" is before the dropout."""
        return self.resume(0, self.pre(images))

    def resume(self, stage: int, feature: Tensor) -> Output:
        """Run on from a stage's map (0 is the stem), and return the output with the later taps."""
        start, stages = feature, []
        for number, layer in enumerate(self.stages[stage:], start=stage):
            if number > 0:
                feature = F.max_pool2d(feature, 3, stride=2, padding=1)
            assert isinstance(layer, nn.ModuleList)
            for module in layer:
                before = module(feature)
                feature = F.relu(before)
            stages.append((feature, before))
        return with_taps(self.classifier, start, stages, feature, stage)
