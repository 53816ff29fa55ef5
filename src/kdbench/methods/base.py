"""The interface of every distillation method."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.errors import ConfigError
from kdbench.types import Batch, Output, Probe


class Method(nn.Module):
    """What a recipe adds to a student: its loss terms, and the modules and buffers they need.

    A method never owns the networks. The step takes the mean of every term that `forward`
    returns and adds the means up; the label term is always called "ce", every other name is
    distillation.
    """

    num_teachers: ClassVar[int | None] = 1  # how many teachers it reads; None: one or more
    taps: tuple[str, ...] = ()  # feature names it reads, checked against all networks at build

    def setup(self, probe: Probe) -> None:
        """Make modules and buffers from probed shapes; called once, before `param_groups`."""

    def draw(self, batch: Batch, generator: torch.Generator) -> Tensor | None:
        """Draw this step's random numbers, outside the graph; they arrive as `batch.drawn`."""
        return None

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Weighted loss terms by name: [B], or [] where a term couples the batch.

        Static shapes, no random numbers, no branch on a tensor, nothing read back from the device.
        """
        raise NotImplementedError

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups of the method's own parameters; a group may carry its own lr."""
        params = list(self.parameters())
        return [{"params": params}] if params else []


def check_positive(**values: float) -> None:
    """Refuse hyper-parameters that must be finite and above 0.

    Raises:
        ConfigError: names the first that is not.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"method.{name} must be above 0, not {value}")


def check_weights(**values: float) -> None:
    """Refuse loss weights that are negative or not finite.

    Raises:
        ConfigError: names the first that is.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"method.{name} must be 0 or more, not {value}")
