"""Sums over the ranks that run while a backward pass still does.

As `DistributedDataParallel`, by hooks: it would wrap the network in a module of its own, and knows
neither methods' parameters nor several gradients of one parameter. Outside `runtime.exact`, because
where a sum is cut into messages may decide how three ranks and more round it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kdbench.parallel.ranks import Ranks

SIZES = 1 << 20, 25 << 20  # bytes of the first message and of further ones: those of PyTorch's


class Overlap:
    """The sums of a run's step, each begun as soon as there is what it adds up.

    Gradients are sent in the reverse order of the parameters, since the last layers' come first. A
    message has the parameters that had a gradient in the step before; gradients that are new go out
    after the backward pass, and so do all of the first step. So ranks agree on the messages, in
    whatever order gradients come, if they agree on which parameters have one.

    Args:
        ranks: the processes.
        params: the optimizer's parameters.
    """

    def __init__(self, ranks: Ranks, params: Sequence[nn.Parameter]) -> None:
        self.ranks, self.params = ranks, params[::-1]
        self.messages: list[list[nn.Parameter]] = []
        self.place: dict[Tensor, int] = {}  # of a parameter's message
        self.begun: list[Callable[[], None]] = []
        self.watching = False
        for param in self.params:
            if param.requires_grad:
                param.register_post_accumulate_grad_hook(self.arrive)

    def watch(self) -> None:
        """Begin sums in the next backward pass, this rank's last one of the step."""
        self.missing = [len(message) for message in self.messages]
        self.sent, self.watching = 0, True

    def arrive(self, param: Tensor) -> None:
        """Take note that a parameter's gradient of the step is complete."""
        place = self.place.get(param) if self.watching else None
        if place is None:
            return
        self.missing[place] -= 1
        while self.sent < len(self.messages) and not self.missing[self.sent]:
            self.send_next()

    def send_next(self) -> None:
        """Begin the next message of gradients."""
        self.send([p.grad for p in self.messages[self.sent] if p.grad is not None])
        self.sent += 1

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Begin to add up tensors that no backward pass of the step changes any more."""
        if tensors:
            self.begun.append(self.ranks.begin_sum(tensors))

    def flush(self) -> None:
        """Begin the sums that are left, at the end of that backward pass.

        At once, so that ranks that send for several runs do so in the same order.
        """
        self.watching = False
        while self.sent < len(self.messages):
            self.send_next()
        reached = [param for param in self.params if param.grad is not None]
        self.send([p.grad for p in reached if p.grad is not None and p not in self.place])
        if len(reached) != len(self.place) or any(param not in self.place for param in reached):
            self.plan(reached)

    def finish(self, rest: Sequence[Tensor]) -> None:
        """Add up `rest` in one message, and wait for all sums of the step.

        Raises:
            RankError: another rank is gone.
        """
        self.send(rest)
        for wait in self.begun:
            wait()
        self.begun.clear()

    def plan(self, params: Sequence[nn.Parameter]) -> None:
        """Divide parameters among the messages of the next steps."""
        self.messages, room = [], 0
        for param in params:
            if room <= 0:
                room = SIZES[bool(self.messages)]
                self.messages.append([])
            self.messages[-1].append(param)
            room -= param.nbytes
        self.place = {p: i for i, message in enumerate(self.messages) for p in message}


class OnTheWay:
    """A number on its way to the host, which goes on meanwhile."""

    def __init__(self, number: Tensor) -> None:
        self.host = number.to("cpu", non_blocking=True)
        self.copied: torch.cuda.Event | None = None
        if number.is_cuda:  # pragma: no cover: needs a GPU
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> float:
        """Wait for the number, and return it."""
        if self.copied is not None:  # pragma: no cover: needs a GPU
            self.copied.synchronize()
        return float(self.host)
