"""PyTorch's SGD, without the second that a process takes to import PyTorch's compiler for it."""

from inspect import unwrap
from typing import Any

import torch


class LightSGD(torch.optim.SGD):
    """SGD whose methods are PyTorch's own, as they are inside what keeps the compiler out of them.

    PyTorch wraps them so that `torch.compile` leaves them alone, and what wraps them imports
    `torch._dynamo` when it is first called, which takes a second. No update is
    compiled here, and the numbers are those of the same code.
    """

    add_param_group = unwrap(torch.optim.SGD.add_param_group)
    zero_grad = unwrap(torch.optim.SGD.zero_grad)
    state_dict = unwrap(torch.optim.SGD.state_dict)
    load_state_dict = unwrap(torch.optim.SGD.load_state_dict)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move the parameters by their gradients."""
        return unwrap(torch.optim.SGD.step)(self, closure)
