"""Shared parts of feature methods: the taps that networks have in common, modules between them."""

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import ConfigError, nearest
from kdbench.types import Affine, NetworkProbe, Probe


def stages_of(network: NetworkProbe) -> list[str]:
    """Return the taps stage1, stage2, ... of a network."""
    numbers = range(1, 1 + len(network.taps))
    return [f"stage{number}" for number in numbers if f"stage{number}" in network.taps]


def shared_stages(probe: Probe) -> list[str]:
    """Return the stages that student and all teachers have, by number.

    If one network has an extra stage, its deepest is left out, as in RepDistiller and mdistiller
    (whose loops end with the shorter list): published cross-architecture numbers contain that.

    Raises:
        ConfigError: they share none.
    """
    networks = (probe.student, *probe.teachers)
    shared = [name for name in stages_of(probe.student) if all(name in n.taps for n in networks)]
    if not shared:
        raise ConfigError("student and teacher share no stage: name stage1, stage2, ... in taps")
    return shared


def last_stage(network: NetworkProbe) -> str:
    """Return a network's deepest stage.

    Raises:
        ConfigError: the network names none.
    """
    stages = stages_of(network)
    if not stages:
        raise ConfigError("a network has no stage: name stage1, stage2, ... in its taps")
    return stages[-1]


def match_smaller(feature: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the map with the larger side [B, C, H, W] down to the other's size."""
    side, wanted = feature.shape[-1], other.shape[-1]
    if side > wanted:
        return F.adaptive_avg_pool2d(feature, _sides(other)), other
    if side < wanted:
        return feature, F.adaptive_avg_pool2d(other, _sides(feature))
    return feature, other


def _sides(feature: Tensor) -> tuple[int, int]:
    return feature.shape[-2], feature.shape[-1]


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, without bias, its BN and a ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


def check_map(network: NetworkProbe, tap: str) -> tuple[int, int, int]:
    """Return C, H, W of a tap.

    Raises:
        ConfigError: the network has no such tap, or it is no map.
    """
    if tap not in network.taps:
        raise ConfigError(f"a network has no tap '{tap}': {nearest(tap, network.taps)}")
    shape = tuple(network.taps[tap])
    if len(shape) != 3:
        raise ConfigError(f"tap '{tap}' has shape {list(shape)}, a map [C, H, W] is needed")
    return shape


def paired_maps(
    probe: Probe, student_suffix: str = "", teacher_suffix: str = ""
) -> list[tuple[str, str]]:
    """Return the shared stages as pairs of taps of the student and of the first teacher.

    The suffix "_pre" asks for the maps before the activation.

    Raises:
        ConfigError: no stage is shared, or a tap is missing or no map.
    """
    pairs = [(stage + student_suffix, stage + teacher_suffix) for stage in shared_stages(probe)]
    for student_tap, teacher_tap in pairs:
        check_map(probe.student, student_tap)
        check_map(probe.teachers[0], teacher_tap)
    return pairs


def conv_regressor(student: tuple[int, int, int], teacher: tuple[int, int, int]) -> nn.Sequential:
    """A convolution with bias from the student's map to the teacher's shape, BN and a ReLU.

    Shapes: both C, H, W. A student's map of twice the side is halved by a 3x3 of stride 2, one of
    half the side is doubled by a transposed 4x4 of stride 2, any other larger or equal one takes
    a kernel of 1 + the difference, 1x1 where the sizes agree. Source: RepDistiller's ConvReg.

    Raises:
        ConfigError: the student's map is smaller, and not half as large.
    """
    (inputs, *size), (outputs, *wanted) = student, teacher
    conv: nn.Module
    if size == [2 * side for side in wanted]:
        conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    elif wanted == [2 * side for side in size]:
        conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    elif size[0] >= wanted[0] and size[1] >= wanted[1]:
        conv = nn.Conv2d(inputs, outputs, (1 + size[0] - wanted[0], 1 + size[1] - wanted[1]))
    else:
        raise ConfigError(
            f"no convolution takes the student's {size[0]}x{size[1]} map to the teacher's "
            f"{wanted[0]}x{wanted[1]}: choose another tap"
        )
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def bottleneck_regressor(
    student: tuple[int, int, int], teacher: tuple[int, int, int], hidden: int
) -> nn.Sequential:
    """1x1, 3x3 and 1x1 convolutions with bias over `hidden` channels, then BN and a ReLU.

    Shapes: both C, H, W, of one size. Source: JiamingLv/WKD's bottleneck projector, which has
    nothing between its convolutions.

    Raises:
        ConfigError: the sizes differ.
    """
    (inputs, *size), (outputs, *wanted) = student, teacher
    if size != wanted:
        raise ConfigError(
            f"the bottleneck takes maps of one size, not {size[0]}x{size[1]} and "
            f"{wanted[0]}x{wanted[1]}: set method.projector=conv1x1"
        )
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 1),
        nn.Conv2d(hidden, hidden, 3, padding=1),
        nn.Conv2d(hidden, outputs, 1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def bridge(source: tuple[int, int, int], target: tuple[int, int, int]) -> nn.Sequential:
    """A 3x3 convolution and BN from one map's shape to another's of the same, half or double side.

    Shapes: both C, H, W. To half the side it has stride 2, to the double it is a transposed 4x4;
    these two have a bias, as in FCFD's code.

    Raises:
        ConfigError: the sizes do not allow it.
    """
    (inputs, *size), (outputs, *wanted) = source, target
    conv: nn.Module
    if size == wanted:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    elif size == [2 * side for side in wanted]:
        conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    elif wanted == [2 * side for side in size]:
        conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    else:
        raise ConfigError(
            f"no bridge leads from a {size[0]}x{size[1]} map to one of {wanted[0]}x{wanted[1]}: "
            "choose networks whose stages have equal, half or double sides"
        )
    if isinstance(conv, nn.Conv2d):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class MapProjection(nn.Module):
    """A student's map in the shape of a teacher's: resized, 1x1 convolution, BN, ReLU.

    A larger side is average-pooled, a smaller one interpolated. Source: CA-MKD's released code,
    whose convolution has a bias too, which the BN after it removes.
    """

    def __init__(self, student: tuple[int, int, int], teacher: tuple[int, int, int]) -> None:
        super().__init__()
        self.size = teacher[1:]
        self.project = conv_bn_relu(student[0], teacher[0])

    def forward(self, feature: Tensor) -> Tensor:
        """[B, C, H, W] of the student -> the teacher's shape."""
        if feature.shape[-1] >= self.size[-1]:
            resized = F.adaptive_avg_pool2d(feature, self.size)
        else:
            resized = F.interpolate(feature, self.size, mode="bilinear")
        return self.project(resized)


def map_classifier(network: NetworkProbe, whose: str) -> Affine:
    """A network's linear classifier, weight [K, D] and bias [K], on the average of its "map".

    Args:
        network: the probe of the network.
        whose: "teacher" or "student", for the error line.

    Raises:
        ConfigError: it has no such classifier.
    """
    width = check_map(network, "map")[0]
    if network.classifier is None or network.classifier.weight.shape[1] != width:
        raise ConfigError(
            f"the {whose} has no linear classifier on the average of its tap 'map': choose another"
        )
    return network.classifier
