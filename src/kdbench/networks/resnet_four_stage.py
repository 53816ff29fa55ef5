"""ResNet18, 34, 50 for small images, as RepDistiller and mdistiller train them.

He et al., "Deep Residual Learning for Image Recognition", 2016, table 1, with a 3x3 stem of
stride 1 and no max-pool; the stride of a bottleneck is in its 3x3 convolution (the paper: in the
first 1x1). The last BN of a block starts at weight 1.
stageN is after the ReLU that follows the residual sum, stageN_pre is the sum itself.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.networks.layers import (
    FOUR_STAGES,
    as_norm,
    conv_bn,
    init_convolutions,
    with_taps,
)
from kdbench.types import Output

WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; returns the residual sum, before its ReLU."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, width, 3, stride)
        self.conv2, self.bn2 = conv_bn(width, width, 3)
        self.shortcut = _shortcut(in_channels, width, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The BN that the residual sum adds."""
        return self.bn2

    def forward(self, feature: Tensor) -> Tensor:
        """[B, C, H, W] after a ReLU -> the sum before one."""
        hidden = F.relu(self.bn1(self.conv1(feature)))
        return self.bn2(self.conv2(hidden)) + self.shortcut(feature)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with four times the width; returns the residual sum, before its ReLU."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        channels = width * self.expansion
        self.conv1, self.bn1 = conv_bn(in_channels, width, 1)
        self.conv2, self.bn2 = conv_bn(width, width, 3, stride)
        self.conv3, self.bn3 = conv_bn(width, channels, 1)
        self.shortcut = _shortcut(in_channels, channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The BN that the residual sum adds."""
        return self.bn3

    def forward(self, feature: Tensor) -> Tensor:
        """[B, C, H, W] after a ReLU -> the sum before one."""
        hidden = F.relu(self.bn1(self.conv1(feature)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        return self.bn3(self.conv3(hidden)) + self.shortcut(feature)


class FourStageResNet(nn.Module):
    """Stem of 64 channels, four stages with strides 1, 2, 2, 2, global pooling, linear."""

    TAPS = FOUR_STAGES

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        num_classes: int,
        in_channels: int,
    ):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, WIDTHS[0], 3)
        outputs = [width * block.expansion for width in WIDTHS]
        inputs = [WIDTHS[0], *outputs[:-1]]
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(
                block(inputs[stage], WIDTHS[stage], 1 if stage == 0 else 2),
                *(block(outputs[stage], WIDTHS[stage], 1) for _ in range(blocks[stage] - 1)),
            )
            for stage in range(4)
        )
        self.linear = nn.Linear(outputs[-1], num_classes)
        init_convolutions(self)

    def forward(self, images: Tensor) -> Output:
        """[B, C, H, W] -> logits [B, K] and TAPS."""
        return self.resume(0, F.relu(self.bn1(self.conv1(images))))

    def resume(self, stage: int, feature: Tensor) -> Output:
        """Run on from a stage's map (0 is the stem), and return the output with the later taps."""
        start, stages = feature, []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4)[stage:]:
            for block in layer:
                before = block(feature)
                feature = F.relu(before)
            stages.append((feature, before))
        return with_taps(self.linear, start, stages, feature, stage)

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The BN whose output reaches each stage's last ReLU."""
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        return tuple(as_norm(stage[-1].last_norm) for stage in stages)


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    if stride == 1 and in_channels == channels:
        return nn.Sequential()
    return nn.Sequential(*conv_bn(in_channels, channels, 1, stride))


def ResNet18(num_classes: int, in_channels: int = 3) -> FourStageResNet:
    """Eight blocks of two convolutions."""
    return FourStageResNet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels)


def ResNet34(num_classes: int, in_channels: int = 3) -> FourStageResNet:
    """Sixteen blocks of two convolutions."""
    return FourStageResNet(BasicBlock, (3, 4, 6, 3), num_classes, in_channels)


def ResNet50(num_classes: int, in_channels: int = 3) -> FourStageResNet:
    """Sixteen bottlenecks."""
    return FourStageResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels)
