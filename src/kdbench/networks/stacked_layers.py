"""Layers of a stack's template, where `torch.vmap` maps those of PyTorch badly."""

import torch
from torch import Tensor, nn

from kdbench.networks.stacked_convolution import convolution


class StackedConv2d(nn.Conv2d):
    """A convolution whose n copies are computed in the fastest way that is known.

    Autocast does not see the mapped convolution of PyTorch, which would stay in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of images [B, C, H, W]."""
        w = self.weight
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, w = x.to(dtype), w.to(dtype)
        pairs = self.stride, self.padding, self.dilation
        numbers = [int(number) for pair in pairs for number in pair]
        found = convolution(x, w, [*numbers, self.groups])
        return found if self.bias is None else found + self.bias.to(found.dtype)[:, None, None]


class StackedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm, also of half precision, which the mapped one of PyTorch refuses."""

    def forward(self, x: Tensor) -> Tensor:
        """Return normalised features [B, C, H, W]; running statistics move."""
        if x.dtype == torch.float32 or x.dtype == torch.float64:
            return super().forward(x)
        return super().forward(x.float()).to(x.dtype)


def use_stacked_layers(template: nn.Module) -> None:
    """Let a template's convolutions and batch norms be these, wherever they do the same."""
    for module in template.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = StackedBatchNorm2d
        elif type(module) is nn.Conv2d and is_plain(module):
            module.__class__ = StackedConv2d


def is_plain(module: nn.Conv2d) -> bool:
    """Return whether a convolution pads with a given number of zeros."""
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)
