"""Checks of the parameters that a configuration passes to a cluster."""

from collections.abc import Mapping, Sequence
from typing import Any

from kdbench.errors import ConfigError, KdbenchError, nearest


def checked(name: str, parameters: Mapping[str, Any], valid: Sequence[str]) -> dict[str, Any]:
    """Check the parameters of a cluster's library, which come from a configuration.

    Raises:
        ConfigError: a configuration may not set one, or one is a text of several lines, which would
            add lines to a job's script.
    """
    for key, value in parameters.items():
        if key not in valid:
            raise ConfigError(f"{name}.{key} is not allowed: {nearest(key, valid)}")
        if not (value is None or isinstance(value, int | float) or is_line(value)):
            raise ConfigError(f"{name}.{key} must be a number or a line of text, not {value!r}")
    return dict(parameters)


def is_line(value: object) -> bool:
    """Return whether a value is a text without line breaks and other control characters."""
    return isinstance(value, str) and value.isprintable()


def missing(package: str, extra: str) -> KdbenchError:
    """Return the error for an executor whose package is not installed."""
    return KdbenchError(
        f"hydra.launcher.executor={package} needs {package}: pip install 'kdbench[{extra}]'"
    )
