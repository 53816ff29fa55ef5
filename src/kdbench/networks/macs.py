"""The size of a forward pass."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def mac_count(network: nn.Module, images: Tensor) -> int:
    """Count multiply-accumulates of convolutions and matrix products on one image of [B, C, H, W].

    The network is called as it is: in the mode that it is in.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images[:1])
    return int(counter.get_total_flops()) // 2  # it counts a multiplication and an addition
