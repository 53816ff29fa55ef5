"""CIFAR ResNets of three stages, as RepDistiller and mdistiller train them.

He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2: depth 6n + 2.
Departures of the released zoo, kept here: a shortcut that changes shape is a 1x1 convolution and
BN (the paper pads with zeros), and the "x4" networks are four times as wide with a stem of 32.
stageN is after the ReLU that follows the residual sum, stageN_pre is the sum itself.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.networks.layers import (
    THREE_STAGES,
    as_norm,
    conv_bn,
    init_convolutions,
    with_taps,
)
from kdbench.types import Output

NARROW = (16, 16, 32, 64)  # channels of the stem and of each stage
WIDE = (32, 64, 128, 256)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; returns the residual sum, so that the caller has it before ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, channels, 3, stride)
        self.conv2, self.bn2 = conv_bn(channels, channels, 3)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(*conv_bn(in_channels, channels, 1, stride))

    def forward(self, feature: Tensor) -> Tensor:
        """[B, C, H, W] after a ReLU -> the sum before one."""
        shortcut = feature if self.downsample is None else self.downsample(feature)
        hidden = F.relu(self.bn1(self.conv1(feature)))
        return self.bn2(self.conv2(hidden)) + shortcut


class ResNet(nn.Module):
    """Stem, three stages of (depth - 2) / 6 blocks with strides 1, 2, 2, global pooling, fc."""

    TAPS = THREE_STAGES

    def __init__(
        self, depth: int, widths: tuple[int, int, int, int], num_classes: int, in_channels: int
    ):
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1, self.bn1 = conv_bn(in_channels, widths[0], 3)
        self.layer1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        init_convolutions(self)

    def forward(self, images: Tensor) -> Output:
        """[B, C, H, W] -> logits [B, K] and TAPS."""
        return self.resume(0, F.relu(self.bn1(self.conv1(images))))

    def resume(self, stage: int, feature: Tensor) -> Output:
        """Run on from a stage's map (0 is the stem), and return the output with the later taps."""
        start, stages = feature, []
        for layer in (self.layer1, self.layer2, self.layer3)[stage:]:
            for block in layer:
                before = block(feature)
                feature = F.relu(before)
            stages.append((feature, before))
        return with_taps(self.fc, start, stages, feature, stage)

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The BN whose output reaches each stage's last ReLU."""
        return tuple(as_norm(stage[-1].bn2) for stage in (self.layer1, self.layer2, self.layer3))


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


def resnet8(num_classes: int, in_channels: int = 3) -> ResNet:
    """One block a stage, 16, 32, 64 channels."""
    return ResNet(8, NARROW, num_classes, in_channels)


def resnet14(num_classes: int, in_channels: int = 3) -> ResNet:
    """2 blocks a stage, 16, 32, 64 channels."""
    return ResNet(14, NARROW, num_classes, in_channels)


def resnet20(num_classes: int, in_channels: int = 3) -> ResNet:
    """3 blocks a stage, 16, 32, 64 channels."""
    return ResNet(20, NARROW, num_classes, in_channels)


def resnet32(num_classes: int, in_channels: int = 3) -> ResNet:
    """5 blocks a stage, 16, 32, 64 channels."""
    return ResNet(32, NARROW, num_classes, in_channels)


def resnet44(num_classes: int, in_channels: int = 3) -> ResNet:
    """7 blocks a stage, 16, 32, 64 channels."""
    return ResNet(44, NARROW, num_classes, in_channels)


def resnet56(num_classes: int, in_channels: int = 3) -> ResNet:
    """9 blocks a stage, 16, 32, 64 channels."""
    return ResNet(56, NARROW, num_classes, in_channels)


def resnet110(num_classes: int, in_channels: int = 3) -> ResNet:
    """18 blocks a stage, 16, 32, 64 channels."""
    return ResNet(110, NARROW, num_classes, in_channels)


def resnet8x4(num_classes: int, in_channels: int = 3) -> ResNet:
    """One block a stage, 64, 128, 256 channels."""
    return ResNet(8, WIDE, num_classes, in_channels)


def resnet32x4(num_classes: int, in_channels: int = 3) -> ResNet:
    """5 blocks a stage, 64, 128, 256 channels."""
    return ResNet(32, WIDE, num_classes, in_channels)
