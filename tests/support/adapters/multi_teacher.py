"""Recipes of several teachers."""

from collections.abc import Callable

from torch import Tensor

from kdbench.losses import ca_weights

Inputs = dict[str, Tensor]


def ca_mkd(params: dict, inputs: Inputs) -> Tensor:
    return ca_weights(inputs["logits_teachers"].unbind(), inputs["target"])


LOSSES: dict[str, Callable[[dict, Inputs], Tensor]] = {"ca_mkd": ca_mkd}
