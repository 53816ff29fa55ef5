"""Recipes that match relations between samples, and contrastive ones."""

from collections.abc import Callable

from torch import Tensor

Inputs = dict[str, Tensor]

LOSSES: dict[str, Callable[[dict, Inputs], Tensor]] = {}
GUARDED: dict[str, float] = {}
