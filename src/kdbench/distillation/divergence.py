"""Detection of steps whose loss or gradient is not finite, without waiting for the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Guard:
    """A record, on the device, of the first step with a loss or a gradient that is not finite.

    From that step on neither parameters nor the optimizer's buffers move. Forward passes go on
    changing running statistics and banks, but the run stops at the next read and saves none of
    them. Only `read` waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.tripped = torch.zeros((), device=device)  # 0.0, and 1.0 from that step on: the
        #                                                `found_inf` that fused optimizers expect
        self.good = torch.zeros((), dtype=torch.int64, device=device)  # steps done before it
        self._one = torch.ones((), device=device)

    def start(self, step: int) -> None:
        """Go on after `step` good steps, in place, since a recorded step reads these tensors."""
        self.tripped.zero_()
        self.good.fill_(step)

    def watch(self, loss: Tensor, gradients: Sequence[Tensor]) -> None:
        """Check a step before its update.

        Args:
            loss: the loss [] of the whole step.
            gradients: float32 of any shapes; no elements of one share memory.
        """
        # This is torch.amp.GradScaler's check, at a scale of 1, which changes no bit: one kernel on
        # a GPU; on a CPU a tenth of the time of taking each gradient's maximum.
        seen = [loss.detach().float(), *gradients]
        torch._amp_foreach_non_finite_check_and_unscale_(seen, self.tripped, self._one)
        self.good += self.tripped == 0

    def read(self) -> int | None:
        """Return the number of that step (from 1); None while all steps were finite."""
        return int(self.good) + 1 if self.tripped.item() else None
