"""Distillation-oriented training: two momenta, one for each half of the loss."""

import torch


def align_gradients(sgd: torch.optim.SGD) -> None:
    """Give each gradient its parameter's strides: the fused kernel walks both as flat memory.

    They differ where the layout of a 1x1 convolution is ambiguous.
    """
    for group in sgd.param_groups:
        for param in group["params"]:
            if param.grad is not None and param.grad.stride() != param.stride():
                param.grad = torch.empty_like(param, requires_grad=False).copy_(param.grad)
