"""DenseNet-BC 121 for small images, as Tf-KD and DR-KD train it.

Huang et al., "Densely Connected Convolutional Networks", 2017, with a 3x3 stem without pooling.
Departure of the released code, kept here: a transition has no ReLU between its BN and its 1x1.
stageN is all that a dense block has gathered, raw; stageN_pre is the BN that reads it: that of the
transition, after the last block the final one, before its ReLU.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.networks.layers import FOUR_STAGES, as_norm, with_taps
from kdbench.types import Output

GROWTH = 32
BLOCKS = (6, 12, 24, 16)  # layers of each dense block


class Layer(nn.Module):
    """BN, ReLU, 1x1 to 128 channels, BN, ReLU, 3x3 to 32, joined to what came in."""

    def __init__(self, in_channels: int):
        super().__init__()
        inner = 4 * GROWTH
        self.bottle_neck = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(),
            nn.Conv2d(in_channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, GROWTH, 3, padding=1, bias=False),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C + 32, H, W]."""
        return torch.cat([feature, self.bottle_neck(feature)], dim=1)


class DenseNet121(nn.Module):
    """Stem of 64, four dense blocks, halved in channels and side between; torch's default init."""

    TAPS = FOUR_STAGES

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        width = 2 * GROWTH
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.blocks, self.norms = nn.ModuleList(), nn.ModuleList()
        self.reductions = nn.ModuleList()
        for number, layers in enumerate(BLOCKS, start=1):
            self.blocks.append(nn.Sequential(*(Layer(width + GROWTH * i) for i in range(layers))))
            width += GROWTH * layers
            self.norms.append(nn.BatchNorm2d(width))
            if number < len(BLOCKS):
                self.reductions.append(nn.Conv2d(width, width // 2, 1, bias=False))
                width //= 2
        self.linear = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Output:
        """[B, C, H, W] -> logits [B, K] and TAPS."""
        return self.resume(0, self.conv1(images))

    def resume(self, stage: int, feature: Tensor) -> Output:
        """Run on from a stage's map (0 is the stem), and return the output with the later taps."""
        start, stages = feature, []
        normed = self.norms[stage - 1](feature) if stage > 0 else feature
        for number in range(stage, len(self.blocks)):
            if number > 0:
                feature = F.avg_pool2d(self.reductions[number - 1](normed), 2)
            gathered = self.blocks[number](feature)
            normed = self.norms[number](gathered)
            stages.append((gathered, normed))
        return with_taps(self.linear, start, stages, F.relu(normed), stage)

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The BN whose output is each stageN_pre."""
        return tuple(as_norm(norm) for norm in self.norms)
