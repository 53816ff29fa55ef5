"""Wide ResNets wrn_d_k, as RepDistiller and mdistiller train them.

Zagoruyko and Komodakis, "Wide Residual Networks", 2016: pre-activation blocks, depth 6n + 4,
widths 16, 16k, 32k, 64k, no dropout, no BN after the stem.
stageN is the raw residual sum: no BN and no ReLU has seen it. stageN_pre is the BN that reads
that sum (the first of the next block, for the last stage the final one), before its ReLU. Both
come out of the one forward pass; mdistiller calls those BN a second time for the second, so that
while training they update their running statistics twice a step. Here they do so once.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.networks.layers import THREE_STAGES, as_norm, init_convolutions, with_taps
from kdbench.types import Output


class PreActivationBlock(nn.Module):
    """BN, ReLU, 3x3, BN, ReLU, 3x3; a shortcut that changes shape reads the activated input."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv(in_channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, 3)
        self.convShortcut = None  # the name in released checkpoints
        if in_channels != channels:
            self.convShortcut = _conv(in_channels, channels, 1, stride)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Raw sum [B, C, H, W] -> the next raw sum, and the first BN of the one that came in."""
        normed = self.bn1(feature)
        active = F.relu(normed)
        hidden = F.relu(self.bn2(self.conv1(active)))
        shortcut = feature if self.convShortcut is None else self.convShortcut(active)
        return shortcut + self.conv2(hidden), normed


class Stage(nn.Module):
    """Blocks of one width; only the first changes shape."""

    def __init__(self, in_channels: int, channels: int, blocks: int, stride: int):
        super().__init__()
        first = PreActivationBlock(in_channels, channels, stride)
        rest = (PreActivationBlock(channels, channels, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last raw sum, and the first BN of the input, like a block."""
        first, *rest = self.layer
        feature, normed = first(feature)
        for block in rest:
            feature, _ = block(feature)
        return feature, normed


class WideResNet(nn.Module):
    """Stem, three stages of (depth - 4) / 6 blocks with strides 1, 2, 2, BN, ReLU, pooling, fc."""

    TAPS = THREE_STAGES

    def __init__(self, depth: int, factor: int, num_classes: int, in_channels: int):
        super().__init__()
        blocks = (depth - 4) // 6
        widths = (16 * factor, 32 * factor, 64 * factor)
        self.conv1 = _conv(in_channels, 16, 3)
        self.block1 = Stage(16, widths[0], blocks, stride=1)
        self.block2 = Stage(widths[0], widths[1], blocks, stride=2)
        self.block3 = Stage(widths[1], widths[2], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Output:
        """[B, C, H, W] -> logits [B, K] and TAPS."""
        return self.resume(0, self.conv1(images))

    def resume(self, stage: int, feature: Tensor) -> Output:
        """Run on from a stage's map (0 is the stem), and return the output with the later taps."""
        maps, normed = [feature], []  # each map, and the BN that reads it
        for block in (self.block1, self.block2, self.block3)[stage:]:
            feature, before = block(feature)
            maps.append(feature)
            normed.append(before)
        normed.append(self.bn1(feature))
        stages = list(zip(maps[1:], normed[1:], strict=True))
        return with_taps(self.fc, maps[0], stages, F.relu(normed[-1]), stage)

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The BN whose output is each stageN_pre."""
        read_by = self.block2.layer[0], self.block3.layer[0], self
        return tuple(as_norm(module.bn1) for module in read_by)


def _conv(in_channels: int, channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)


def wrn_16_1(num_classes: int, in_channels: int = 3) -> WideResNet:
    """Two blocks a stage, 16, 32, 64 channels."""
    return WideResNet(16, 1, num_classes, in_channels)


def wrn_16_2(num_classes: int, in_channels: int = 3) -> WideResNet:
    """Two blocks a stage, 32, 64, 128 channels."""
    return WideResNet(16, 2, num_classes, in_channels)


def wrn_16_4(num_classes: int, in_channels: int = 3) -> WideResNet:
    """Two blocks a stage, 64, 128, 256 channels."""
    return WideResNet(16, 4, num_classes, in_channels)


def wrn_28_2(num_classes: int, in_channels: int = 3) -> WideResNet:
    """Four blocks a stage, 32, 64, 128 channels."""
    return WideResNet(28, 2, num_classes, in_channels)


def wrn_28_4(num_classes: int, in_channels: int = 3) -> WideResNet:
    """Four blocks a stage, 64, 128, 256 channels."""
    return WideResNet(28, 4, num_classes, in_channels)


def wrn_28_10(num_classes: int, in_channels: int = 3) -> WideResNet:
    """Four blocks a stage, 160, 320, 640 channels."""
    return WideResNet(28, 10, num_classes, in_channels)


def wrn_40_1(num_classes: int, in_channels: int = 3) -> WideResNet:
    """Six blocks a stage, 16, 32, 64 channels."""
    return WideResNet(40, 1, num_classes, in_channels)


def wrn_40_2(num_classes: int, in_channels: int = 3) -> WideResNet:
    """Six blocks a stage, 32, 64, 128 channels."""
    return WideResNet(40, 2, num_classes, in_channels)


def wrn_40_4(num_classes: int, in_channels: int = 3) -> WideResNet:
    """Six blocks a stage, 64, 128, 256 channels."""
    return WideResNet(40, 4, num_classes, in_channels)
