"""Recipes of several teachers."""

from collections.abc import Callable

from torch import Tensor

Inputs = dict[str, Tensor]

LOSSES: dict[str, Callable[[dict, Inputs], Tensor]] = {}
