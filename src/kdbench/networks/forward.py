"""Forward passes of one view or several."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kdbench.types import Batch, Network, Output


@contextmanager
def as_in_evaluation(network: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and afterwards back into the mode that each was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def output_of(network: Network, images: Tensor) -> Output:
    """Return a network's output; V views [V, B, C, H, W] take a pass each, so BN separates them."""
    if images.ndim == 4:
        return network(images)
    return stacked([network(view) for view in images])


def teacher_outputs(teachers: Sequence[Network], batch: Batch) -> tuple[Output, ...]:
    """Return every frozen teacher's output on the same views that the student sees."""
    with torch.no_grad():
        return tuple(output_of(teacher, batch.images) for teacher in teachers)


def stacked(outputs: Sequence[Output]) -> Output:
    """Stack a network's outputs on several views, with the views in front; keep a single one."""
    if len(outputs) == 1:
        return outputs[0]
    taps = {name: torch.stack([o.taps[name] for o in outputs]) for name in outputs[0].taps}
    return Output(torch.stack([o.logits for o in outputs]), taps)
