"""VGG with BN for small images, as RepDistiller and mdistiller train it.

Simonyan and Zisserman, "Very Deep Convolutional Networks", 2015; vgg8 is RepDistiller's own.
Five blocks of 3x3 convolutions with bias, each followed by BN and ReLU; one linear classifier.
A max-pool follows blocks 0, 1, 2, and block 3 as well when the image has 64 px or more.
The first block is the stem, the others are stages 1 to 4: stageN is after the block's last ReLU,
stageN_pre is the output of its last BN.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.networks.layers import (
    FOUR_STAGES,
    as_norm,
    init_classifier,
    init_convolutions,
    with_taps,
)
from kdbench.types import Output

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """`convolutions` counts the convolutions of each block."""

    TAPS = FOUR_STAGES

    def __init__(
        self, convolutions: tuple[int, int, int, int, int], num_classes: int, in_channels: int
    ):
        super().__init__()
        inputs = (in_channels, *WIDTHS[:-1])
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _block(*sizes) for sizes in zip(inputs, WIDTHS, convolutions, strict=True)
        )
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        init_convolutions(self)
        init_classifier(self.classifier)

    def forward(self, images: Tensor) -> Output:
        """[B, C, H, W] -> logits [B, K] and TAPS."""
        return self.resume(0, F.relu(self.block0(images)))

    def resume(self, stage: int, feature: Tensor) -> Output:
        """Run on from a stage's map (0 is the stem), and return the output with the later taps."""
        start, stages = feature, []
        for block in (self.block1, self.block2, self.block3, self.block4)[stage:]:
            # Before the last block only where the images have 64 pixels or more.
            pooling = block is not self.block4 or feature.shape[2] >= 8
            before = block(F.max_pool2d(feature, 2) if pooling else feature)
            feature = F.relu(before)
            stages.append((feature, before))
        return with_taps(self.classifier, start, stages, feature, stage)

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The BN whose output reaches each stage's last ReLU."""
        blocks = (self.block1, self.block2, self.block3, self.block4)
        return tuple(as_norm(block[-1]) for block in blocks)


def _block(in_channels: int, channels: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(convolutions):
        conv = nn.Conv2d(channels if number else in_channels, channels, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers[:-1])  # the last ReLU is in forward, which needs its input too


def vgg8(num_classes: int, in_channels: int = 3) -> VGG:
    """Five convolutions."""
    return VGG((1, 1, 1, 1, 1), num_classes, in_channels)


def vgg11(num_classes: int, in_channels: int = 3) -> VGG:
    """Eight convolutions."""
    return VGG((1, 1, 2, 2, 2), num_classes, in_channels)


def vgg13(num_classes: int, in_channels: int = 3) -> VGG:
    """Ten convolutions."""
    return VGG((2, 2, 2, 2, 2), num_classes, in_channels)


def vgg16(num_classes: int, in_channels: int = 3) -> VGG:
    """Thirteen convolutions."""
    return VGG((2, 2, 3, 3, 3), num_classes, in_channels)


def vgg19(num_classes: int, in_channels: int = 3) -> VGG:
    """Sixteen convolutions."""
    return VGG((2, 2, 4, 4, 4), num_classes, in_channels)
