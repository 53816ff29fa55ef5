"""The settings of `hydra.launcher` for a sweep."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdbench.errors import ConfigError, nearest

EXECUTORS = ("local", "submitit", "ray")
ORDERS = ("given", "value")


@dataclass(frozen=True)
class Settings:
    """`hydra.launcher`, checked.

    Raises:
        ConfigError: a setting that makes no sense.
    """

    size: int = 16
    executor: str = "local"
    processes: int | None = None
    fail_fast: bool = False
    minutes: float | None = None
    order: str = "given"
    headline: int | None = None
    submitit: Mapping[str, Any] = field(default_factory=dict)
    ray: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("size", "processes", "headline"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"hydra.launcher.{key} must be 1 or more, not {value}")
        for key, valid in (("executor", EXECUTORS), ("order", ORDERS)):
            value = getattr(self, key)
            if value not in valid:
                raise ConfigError(
                    f"unknown hydra.launcher.{key} '{value}': {nearest(value, valid)}"
                )
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ConfigError(f"hydra.launcher.minutes must be above 0, not {self.minutes:g}")
        if self.minutes is not None and self.executor != "local":
            raise ConfigError(
                f"hydra.launcher.minutes is for executor=local, not {self.executor}: a cluster's "
                "jobs have a time limit of their own"
            )

    @property
    def is_campaign(self) -> bool:
        """Return whether the sweep is the part of a larger one that others train too."""
        return self.minutes is not None or self.order == "value"
