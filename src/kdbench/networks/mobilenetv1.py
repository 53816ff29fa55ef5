"""MobileNet V1 for ImageNet, the student of mdistiller's second ImageNet pair.

Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
2017, table 1, with ReLU as there and in mdistiller (timm's has ReLU6).
stageN is the last unit before the map is halved, stageN_pre its BN before the last ReLU; the first
and third unit's halvings come before and are no stage, as in mdistiller, whose list has no stem.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.networks.layers import FOUR_STAGES, as_norm, conv_bn, with_taps
from kdbench.types import Output

STEM = 32
UNITS = (  # channels, stride
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)
STAGE_ENDS = (2, 4, 10, 12)  # the units that end a stage, from 0


class Unit(nn.Module):
    """Depthwise 3x3, 1x1; returned before the last ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, in_channels, 3, stride, groups=in_channels)
        self.conv2, self.bn2 = conv_bn(in_channels, channels, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """[B, C, H, W] after a ReLU -> [B, channels, H / stride, W / stride] before one."""
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(feature)))))


class MobileNetV1(nn.Module):
    """4,231,976 parameters with 1,000 classes; torch's default initialisation."""

    TAPS = FOUR_STAGES

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, STEM, 3, stride=2)
        self.units = nn.ModuleList()
        width = STEM
        for channels, stride in UNITS:
            self.units.append(Unit(width, channels, stride))
            width = channels
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Output:
        """[B, C, H, W] -> logits [B, K] and TAPS."""
        return self.resume(0, F.relu(self.bn1(self.conv1(images))))

    def resume(self, stage: int, feature: Tensor) -> Output:
        """Run on from a stage's map (0 is the stem), and return the output with the later taps."""
        start, stages = feature, []
        first = STAGE_ENDS[stage - 1] + 1 if stage > 0 else 0
        for number, unit in enumerate(self.units[first:], start=first):
            before = unit(feature)
            feature = F.relu(before)
            if number in STAGE_ENDS:
                stages.append((feature, before))
        return with_taps(self.fc, start, stages, feature, stage)

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The BN before each stage's last ReLU."""
        return tuple(as_norm(self.units[end].bn2) for end in STAGE_ENDS)
