"""Changes of a student's head by methods: class maps beside the logits, a reused classifier.

A network's logits are its linear classifier on the average of its last map, the tap "map". The
classifier commutes with the average: applied to every position it gives one map per class, and
their average is the logits.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import ConfigError
from kdbench.networks.adapters import conv_bn_relu
from kdbench.networks.layers import global_average, set_taps, taps_of
from kdbench.types import Affine, Output

CLASS_MAP = "class_map"
PROJECTED = "projected"


def class_maps(feature: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear classifier at every position of the map that it reads the average of.

    Shapes: feature [B, D, H, W], weight [K, D], bias [K] -> [B, K, H, W].
    """
    return F.conv2d(feature, weight[:, :, None, None], bias)


def with_class_maps(network: nn.Module, bias: bool = True) -> nn.Module:
    """Return the network with the tap "class_map" [B, K, H, W] added, whose average is its logits.

    Its state dict keeps its keys, so that saved weights load into the original network.

    Args:
        network: has the tap "map", which its last linear layer reads the average of.
        bias: without, the classifier's bias becomes zeros that are not trained.

    Raises:
        ConfigError: it has no linear layer.
    """
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise ConfigError("the student has no linear classifier to make class maps with")
    linear = linears[-1]
    if not bias:
        zeros = torch.zeros(linear.out_features)
        del linear.bias
        linear.register_buffer("bias", zeros)
    # A hook as in networks/tapped.py: a partial is copied together with the network.
    network.register_forward_hook(partial(_add_class_maps, linear))
    set_taps(network, (*taps_of(network), CLASS_MAP))
    return network


def _add_class_maps(
    linear: nn.Linear, network: nn.Module, inputs: tuple[Tensor, ...], output: Output
) -> Output:
    maps = class_maps(output.taps["map"], linear.weight, linear.bias)
    return output._replace(taps={**output.taps, CLASS_MAP: maps})


def projector(in_channels: int, out_channels: int, factor: int) -> nn.Sequential:
    """1x1, 3x3, 1x1 convolutions through out_channels / factor, each with BN and ReLU.

    Source: SimKD (Chen et al. 2022) and its code.
    """
    width = out_channels // factor
    return nn.Sequential(
        conv_bn_relu(in_channels, width),
        conv_bn_relu(width, width, kernel=3),
        conv_bn_relu(width, out_channels),
    )


class ReusedHead(nn.Module):
    """A student whose logits are another network's classifier on a projection of one stage.

    The classifier is a pair of buffers: saved with the network, never trained. What the student
    has beyond the stage (its own classifier, a last convolution) is still computed for its taps,
    and is not trained either: those parameters become buffers too.

    Args:
        student: the network up to `stage`.
        image: the shape [C, H, W] of an image.
        stage: the tap that is projected.
        projection: [B, C, H, W] of that stage -> [B, D, H, W].
        side: of the classifier's own map; a larger stage is average-pooled to it first.
        classifier: weight [K, D] and bias [K].
    """

    TAPS: tuple[str, ...]
    teacher_weight: Tensor
    teacher_bias: Tensor

    def __init__(
        self,
        student: nn.Module,
        image: torch.Size,
        stage: str,
        projection: nn.Module,
        side: int,
        classifier: Affine,
    ) -> None:
        super().__init__()
        self.student = student
        self.projector = projection
        self.stage, self.side = stage, side
        self.register_buffer("teacher_weight", classifier.weight)
        self.register_buffer("teacher_bias", classifier.bias)
        self.TAPS = (*taps_of(student), PROJECTED)
        _freeze_beyond(student, image, stage)

    def forward(self, images: Tensor) -> Output:
        """[B, C, H, W] -> logits [B, K], the student's taps and "projected" [B, D, H, W]."""
        taps = self.student(images).taps
        feature = taps[self.stage]
        if feature.shape[-1] > self.side:
            feature = F.adaptive_avg_pool2d(feature, self.side)
        projected = self.projector(feature)
        logits = F.linear(global_average(projected), self.teacher_weight, self.teacher_bias)
        return Output(logits, {**taps, PROJECTED: projected})


def _freeze_beyond(network: nn.Module, image: torch.Size, stage: str) -> None:
    """Turn parameters on which a stage does not depend into buffers; nothing else changes."""
    training = network.training
    named = dict(network.named_parameters())
    read = network.eval()(torch.zeros(1, *image)).taps[stage].sum()
    gradients = torch.autograd.grad(read, list(named.values()), allow_unused=True)
    for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
        if gradient is None:
            path, _, leaf = name.rpartition(".")
            owner = network.get_submodule(path)
            delattr(owner, leaf)
            owner.register_buffer(leaf, parameter.detach())
    network.train(training)
