"""Steps whose loss or gradient is not finite: they move nothing, and are found out later."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Guard:
    """Remembers, on the device, the first step with a loss or a gradient that is not finite.

    From that step on neither parameters nor the optimizer's buffers move. What a forward pass
    changes (the running statistics of batch norms, a method's banks) goes on, and is of no use: the
    run stops at the next read and none of it is saved. Nothing but `read` waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.tripped = torch.zeros((), device=device)  # 0.0, and 1.0 from that step on: the form
        #                                                in which fused optimizers want to be told
        self.good = torch.zeros((), dtype=torch.int64, device=device)  # steps done before it
        self._one = torch.ones((), device=device)

    def start(self, step: int) -> None:
        """Go on after `step` good steps; in place, for a recorded step reads these very tensors."""
        self.tripped.zero_()
        self.good.fill_(step)

    def watch(self, loss: Tensor, gradients: Sequence[Tensor]) -> None:
        """Look at a step before its update.

        Args:
            loss: [], of the whole step.
            gradients: of any shapes, float32, none with elements that share memory.
        """
        # What torch.amp.GradScaler asks, at a scale of one, which leaves every bit as it is: one
        # kernel on a GPU; on a CPU a tenth of the time of asking each gradient for its largest.
        seen = [loss.detach().float(), *gradients]
        torch._amp_foreach_non_finite_check_and_unscale_(seen, self.tripped, self._one)
        self.good += self.tripped == 0

    def read(self) -> int | None:
        """The number of that step (from 1); None while all is well."""
        return int(self.good) + 1 if self.tripped.item() else None
