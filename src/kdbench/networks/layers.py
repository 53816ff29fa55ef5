"""Shared parts of network families: tap names, pooling, channel shuffle, initialisation.

There is no registry: a file in conf/student or conf/teacher names a network's constructor, which
bears the network's name. Every class (of other libraries' networks every instance) has `TAPS`, the
names of the features that forward returns, in order:

    stem           after the first convolution (and its BN and ReLU where it has them)
    stage1 ...     the end of each stage, what published recipes call f1, f2, ...
    stage1_pre ... the same before its activation; each family's docstring says what exactly
    pooled         [B, D], the input of the classifier

State-dict keys are those of the checkpoints that RepDistiller and mdistiller released.
"""

from typing import cast

from torch import Tensor, nn

from kdbench.types import Output

THREE_STAGES = (
    "stem",
    *("stage1", "stage1_pre", "stage2", "stage2_pre", "stage3", "stage3_pre"),
    *("map", "pooled"),
)
FOUR_STAGES = (*THREE_STAGES[:-2], "stage4", "stage4_pre", "map", "pooled")


def with_taps(
    classifier: nn.Module,
    stem: Tensor,
    stages: list[tuple[Tensor, Tensor]],
    last_map: Tensor,
    after: int = 0,
) -> Output:
    """Pool, classify, and name the taps in the order of THREE_STAGES or FOUR_STAGES.

    A stage is (feature, before). `last_map` [B, D, H, W] is what the classifier reads the average
    of; "map" and "pooled" are their names. Where a network was resumed `after` a stage, there are
    the taps of those that follow, and `stem` is what it was resumed with.
    """
    taps = {"stem": stem} if after == 0 else {}
    for number, (feature, before) in enumerate(stages, start=after + 1):
        taps[f"stage{number}"] = feature
        taps[f"stage{number}_pre"] = before
    taps["map"], taps["pooled"] = last_map, global_average(last_map)
    return Output(classifier(taps["pooled"]), taps)


def taps_of(network: nn.Module) -> tuple[str, ...]:
    """Return the network's `TAPS`."""
    return cast(tuple[str, ...], network.TAPS)  # nn.Module declares a tensor or a module


def set_taps(network: nn.Module, names: tuple[str, ...]) -> None:
    """Give this one network `TAPS` of its own."""
    network.TAPS = names  # type: ignore[assignment]  # nn.Module declares a tensor or a module


def as_norm(module: object) -> nn.BatchNorm2d:
    """Return a part of a network, typed as the BN that it is."""
    assert isinstance(module, nn.BatchNorm2d)
    return module


def global_average(feature: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C] for any H and W; the released codes fix the window for 32 px."""
    return feature.mean((2, 3))  # as adaptive_avg_pool2d to 1 x 1, which vmap cannot map


def channel_shuffle(feature: Tensor, groups: int) -> Tensor:
    """Interleave the channels of `groups` equal groups; [B, C, H, W] keeps its shape."""
    return feature.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def conv_bn(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Make a convolution without bias, padded to keep the size at stride 1, and its BN."""
    padding = kernel // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(out_channels)


def biased_conv_bn(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Make `conv_bn` with a bias, as the networks of Tf-KD have, although BN removes it."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups)
    return conv, nn.BatchNorm2d(out_channels)


def init_convolutions(network: nn.Module) -> None:
    """Initialise every convolution from N(0, sqrt(2 / (k^2 C_out))), and its bias to 0.

    He initialisation by fan-out; BN needs nothing, torch starts it at weight 1 and bias 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_classifier(linear: nn.Linear) -> None:
    """Initialise the classifier of VGG and MobileNetV2: weights from N(0, 0.01), biases 0."""
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
