"""Networks that run from a stage on, beside their own forward passes and without a trace there."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from kdbench.errors import ConfigError
from kdbench.types import NetworkProbe, Output

Resume = Callable[[int, Tensor], Output]


def resumable(probe: NetworkProbe, whose: str) -> nn.Module:
    """Return the network itself.

    Args:
        probe: the probe of the network.
        whose: "teacher" or "student", for the error line.

    Raises:
        ConfigError: it cannot be resumed after a stage.
    """
    if probe.network is None or not hasattr(probe.network, "resume"):
        raise ConfigError(
            f"the {whose} cannot be resumed after a stage, which this method needs: choose one of "
            "kdbench's own networks"
        )
    return probe.network


class Tail(nn.Module):
    """A network whose forward pass begins after a stage."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, stage: int, feature: Tensor) -> Output:
        """Run on from a stage's map."""
        return cast(Resume, self.network.resume)(stage, feature)

    def apart(self, stage: int, feature: Tensor) -> Output:
        """Run on likewise, but keep the batch norms' running statistics.

        While training they still normalise by the batch; their updates are discarded.
        """
        noted = {name: buffer.clone() for name, buffer in self.named_buffers()}
        output: Output = torch.func.functional_call(self, noted, (stage, feature))
        return output


def is_rectified(network: nn.Module, image: torch.Size, stages: list[str]) -> bool:
    """Return whether stages end in a ReLU: on noise none has a negative value."""
    noise = torch.rand(1, *image, generator=torch.Generator().manual_seed(0)) - 0.5
    parameter = next(network.parameters())
    training = network.training
    with torch.no_grad():
        taps = network.eval()(noise.to(parameter)).taps
    network.train(training)
    return all(bool((taps[stage] >= 0).all()) for stage in stages)
