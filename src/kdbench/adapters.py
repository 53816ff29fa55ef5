"""What feature methods share: which taps two networks have in common, and modules between them."""

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import ConfigError
from kdbench.types import NetworkProbe, Probe


def stages_of(network: NetworkProbe) -> list[str]:
    """The taps stage1, stage2, ... that a network has."""
    numbers = range(1, 1 + len(network.taps))
    return [f"stage{number}" for number in numbers if f"stage{number}" in network.taps]


def shared_stages(probe: Probe) -> list[str]:
    """The stages that student and all teachers have, by number.

    Where one network has a stage more, its deepest is left out, as in RepDistiller and mdistiller
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
    """A network's deepest stage.

    Raises:
        ConfigError: it names none.
    """
    stages = stages_of(network)
    if not stages:
        raise ConfigError("a network has no stage: name stage1, stage2, ... in its taps")
    return stages[-1]


def match_smaller(feature: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the map with the larger side [B, C, H, W] down to the other's size."""
    side, wanted = feature.shape[-1], other.shape[-1]
    if side > wanted:
        return F.adaptive_avg_pool2d(feature, other.shape[-2:]), other
    if side < wanted:
        return feature, F.adaptive_avg_pool2d(other, feature.shape[-2:])
    return feature, other


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, without bias, its BN and a ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())
