"""Recipes that weigh or correct by entropy, and self-distillation."""

from collections.abc import Callable

from torch import Tensor

Inputs = dict[str, Tensor]

LOSSES: dict[str, Callable[[dict, Inputs], Tensor]] = {}
GUARDED: dict[str, float] = {}
