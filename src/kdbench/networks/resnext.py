"""ResNeXt-29 (8x64d) for small images, as Tf-KD and DR-KD train it.

Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", 2017, section 5.2: three
stages of three blocks, 34.4 M parameters on CIFAR-10.
stageN is after the ReLU that follows the residual sum, stageN_pre is the sum itself.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.networks.layers import THREE_STAGES, as_norm, conv_bn, init_convolutions, with_taps
from kdbench.types import Output

CARDINALITY, STEM, BLOCKS = 8, 64, 3
STAGES = ((256, 1), (512, 2), (1024, 2))  # channels, stride of the first block


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1; returns the residual sum, before its ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        inner = CARDINALITY * channels // 4
        self.conv1, self.bn1 = conv_bn(in_channels, inner, 1)
        self.conv2, self.bn2 = conv_bn(inner, inner, 3, stride, groups=CARDINALITY)
        self.conv3, self.bn3 = conv_bn(inner, channels, 1)
        same = in_channels == channels
        self.shortcut = nn.Sequential(*(() if same else conv_bn(in_channels, channels, 1, stride)))

    def forward(self, feature: Tensor) -> Tensor:
        """[B, C, H, W] after a ReLU -> the sum before one."""
        hidden = F.relu(self.bn1(self.conv1(feature)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        return self.bn3(self.conv3(hidden)) + self.shortcut(feature)


class ResNeXt29(nn.Module):
    """Stem of 64, three stages, pooling, linear."""

    TAPS = THREE_STAGES

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, STEM, 3)
        self.stages = nn.ModuleList()
        width = STEM
        for channels, stride in STAGES:
            rest = (Bottleneck(channels, channels, 1) for _ in range(BLOCKS - 1))
            self.stages.append(nn.Sequential(Bottleneck(width, channels, stride), *rest))
            width = channels
        self.linear = nn.Linear(width, num_classes)
        init_convolutions(self)
        nn.init.kaiming_normal_(self.linear.weight)  # by fan-in, as released
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor) -> Output:
        """[B, C, H, W] -> logits [B, K] and TAPS."""
        return self.resume(0, F.relu(self.bn1(self.conv1(images))))

    def resume(self, stage: int, feature: Tensor) -> Output:
        """Run on from a stage's map (0 is the stem), and return the output with the later taps."""
        start, stages = feature, []
        for layer in self.stages[stage:]:
            assert isinstance(layer, nn.Sequential)
            for block in layer:
                before = block(feature)
                feature = F.relu(before)
            stages.append((feature, before))
        return with_taps(self.linear, start, stages, feature, stage)

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The BN that each stage's last residual sum adds."""
        last = f"{BLOCKS - 1}.bn3"
        return tuple(as_norm(stage.get_submodule(last)) for stage in self.stages)
