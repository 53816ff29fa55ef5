"""The settings of `hydra.launcher` for a sweep."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdbench.errors import ConfigError, nearest

EXECUTORS = ("local", "submitit", "ray")


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
    submitit: Mapping[str, Any] = field(default_factory=dict)
    ray: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, value in (("size", self.size), ("processes", self.processes)):
            if value is not None and value < 1:
                raise ConfigError(f"hydra.launcher.{key} must be 1 or more, not {value}")
        if self.executor not in EXECUTORS:
            raise ConfigError(
                f"unknown hydra.launcher.executor '{self.executor}': "
                f"{nearest(self.executor, EXECUTORS)}"
            )
