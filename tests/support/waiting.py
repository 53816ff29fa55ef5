"""Waiting for what other processes do."""

import time
from collections.abc import Callable

PATIENCE = 240.0  # seconds; a loaded machine takes long to import torch


def wait_until(
    happens: Callable[[], object], fails: Callable[[], str | None] = lambda: None
) -> None:
    """Return as soon as `happens` is true.

    Args:
        happens: looked at again and again.
        fails: says why it will never be, as soon as that is known.
    """
    until = time.monotonic() + PATIENCE
    while not happens():
        why = fails()
        assert why is None, why
        assert time.monotonic() < until, "it has not happened"
        time.sleep(0.05)
