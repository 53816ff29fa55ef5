"""Recipes that match logits."""

from collections.abc import Callable

from torch import Tensor

from kdbench.losses import dkd_losses, kd_loss

Inputs = dict[str, Tensor]


def kd(params: dict, inputs: Inputs) -> Tensor:
    losses = kd_loss(inputs["logits_student"], inputs["logits_teacher"], params["temperature"])
    return losses.mean()


def dkd(params: dict, inputs: Inputs) -> Tensor:
    tckd, nckd = dkd_losses(
        inputs["logits_student"], inputs["logits_teacher"], inputs["target"], params["temperature"]
    )
    return (params["alpha"] * tckd + params["beta"] * nckd).mean()


LOSSES: dict[str, Callable[[dict, Inputs], Tensor]] = {"kd": kd, "dkd": dkd}
