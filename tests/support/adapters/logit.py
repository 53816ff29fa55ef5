"""Recipes that match logits."""

from collections.abc import Callable

import torch
from torch import Tensor

from kdbench.losses import ca_weights, dkd_losses, kd_loss, ttm_loss
from kdbench.methods.dist import dist_losses
from kdbench.methods.logit_standardization import standardise
from kdbench.methods.mlkd import batch_correlation, class_correlation
from kdbench.methods.nkd import nkd_losses
from kdbench.methods.wsld import WSLD
from kdbench.methods.wttm import power_sum
from kdbench.types import Batch, Output

Inputs = dict[str, Tensor]


def kd(params: dict, inputs: Inputs) -> Tensor:
    losses = kd_loss(inputs["logits_student"], inputs["logits_teacher"], params["temperature"])
    return losses.mean()


def dkd(params: dict, inputs: Inputs) -> Tensor:
    tckd, nckd = dkd_losses(
        inputs["logits_student"], inputs["logits_teacher"], inputs["target"], params["temperature"]
    )
    return (params["alpha"] * tckd + params["beta"] * nckd).mean()


def wsld(params: dict, inputs: Inputs) -> Tensor:
    """The soft term alone: the reference leaves the label's loss out."""
    labels = inputs["target"]
    batch = Batch(torch.empty(0), labels, torch.arange(len(labels)), torch.tensor(1.0))
    method = WSLD(params["temperature"], soft_weight=params["alpha"])
    student, teacher = (Output(inputs[f"logits_{who}"], {}) for who in ("student", "teacher"))
    return method(batch, student, (teacher,))["soft"].mean()


def nkd(params: dict, inputs: Inputs) -> Tensor:
    target, others = nkd_losses(
        inputs["logits_student"], inputs["logits_teacher"], inputs["target"], params["temperature"]
    )
    return (target + params["gamma"] * others).mean()


def ttm(params: dict, inputs: Inputs) -> Tensor:
    return ttm_loss(inputs["logits_student"], inputs["logits_teacher"], params["power"]).mean()


def wttm(params: dict, inputs: Inputs) -> Tensor:
    losses = ttm_loss(inputs["logits_student"], inputs["logits_teacher"], params["power"])
    return (power_sum(inputs["logits_teacher"], params["power"]) * losses).mean()


def dist(params: dict, inputs: Inputs) -> Tensor:
    inter, intra = dist_losses(
        inputs["logits_student"], inputs["logits_teacher"], params["temperature"]
    )
    return params["beta"] * inter.mean() + params["gamma"] * intra


def kd_standardised(params: dict, inputs: Inputs) -> Tensor:
    student, teacher = (
        standardise(inputs[f"logits_{who}"], params["eps"]) for who in ("student", "teacher")
    )
    return kd_loss(student, teacher, params["temperature"]).mean()


def mlkd(level: Callable[..., Tensor]) -> Callable[[dict, Inputs], Tensor]:
    return lambda params, inputs: level(
        inputs["logits_student"], inputs["logits_teacher"], params["temperature"]
    )


def ca_mkd(params: dict, inputs: Inputs) -> Tensor:
    return ca_weights(inputs["logits_teachers"].unbind(), inputs["target"])


LOSSES: dict[str, Callable[[dict, Inputs], Tensor]] = {
    "kd": kd,
    "dkd": dkd,
    "wsld": wsld,
    "nkd": nkd,
    "ttm": ttm,
    "wttm": wttm,
    "dist": dist,
    "kd+logit_standardization": kd_standardised,
    "mlkd_class_correlation": mlkd(class_correlation),
    "mlkd_batch_correlation": mlkd(batch_correlation),
    "ca_mkd": ca_mkd,
}
