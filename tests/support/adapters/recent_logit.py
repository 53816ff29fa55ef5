"""Recipes of 2021 to 2026 that match logits."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from kdbench.methods.ab_dkd import ABDKD
from kdbench.methods.ab_ttm import ABTTM
from kdbench.methods.abkd import ABKD
from kdbench.methods.base import Method
from kdbench.methods.bkl import bkl_loss
from kdbench.methods.crld import CRLD
from kdbench.methods.deepkd import deepkd_losses
from kdbench.methods.dkd import DKD
from kdbench.methods.gkl import GKL
from kdbench.methods.ikl import IKL
from kdbench.methods.kd import KD
from kdbench.methods.ldrld import ldrld_losses, pair_weights
from kdbench.methods.logit_standardization import LogitStandardization
from kdbench.methods.luminet import LumiNet
from kdbench.methods.normkd import NormKD
from kdbench.methods.ofa import ofa_loss
from kdbench.methods.rld import confidence_loss, correlation_loss
from kdbench.methods.sld import SLD
from kdbench.methods.tekap import TeKAP
from kdbench.types import Batch, Output

Inputs = dict[str, Tensor]
LATE = 1000.0  # an epoch after every warm-up


def logits_of(inputs: Inputs, network: str) -> Tensor:
    """[B, K], or [V, B, K] where there are two views."""
    if f"logits_{network}" in inputs:
        return inputs[f"logits_{network}"]
    return torch.stack([inputs[f"logits_{network}_{view}"] for view in ("weak", "strong")])


def terms_of(
    method: Method, inputs: Inputs, epoch: float = LATE, drawn: Tensor | None = None
) -> dict[str, Tensor]:
    """The means of a method's terms after every warm-up."""
    student, teacher = logits_of(inputs, "student"), logits_of(inputs, "teacher")
    count = student.shape[-2]
    labels = inputs.get("target", torch.zeros(count, dtype=torch.int64))
    batch = Batch(torch.empty(0), labels, torch.arange(count), torch.tensor(epoch), drawn)
    terms = method(batch, Output(student, {}), (Output(teacher, {}),))
    return {name: term.mean() for name, term in terms.items()}


def distillation(method: Method, inputs: Inputs, drawn: Tensor | None = None) -> Tensor:
    """All but the label term."""
    terms = terms_of(method, inputs, drawn=drawn)
    return cast(Tensor, sum(term for name, term in terms.items() if name != "ce"))


def luminet(params: dict, inputs: Inputs) -> Tensor:
    return distillation(
        LumiNet(params["temperature"], 1.0, params["alpha"], 1, params["eps"]), inputs
    )


def normkd(params: dict, inputs: Inputs) -> Tensor:
    return distillation(NormKD(KD(params["temperature"], kd_weight=1.0)), inputs)


def normkd_dkd(params: dict, inputs: Inputs) -> Tensor:
    inner = DKD(params["temperature"], 1.0, params["alpha"], params["beta"], 1)
    return distillation(NormKD(inner), inputs)


def abkd(params: dict, inputs: Inputs) -> Tensor:
    method = ABKD(params["temperature"], 1.0, 1.0, params["alpha"], params["beta"])
    return distillation(method, inputs)


def abkd_standardised(params: dict, inputs: Inputs) -> Tensor:
    inner = ABKD(params["temperature"], 1.0, 1.0, params["alpha"], params["beta"], True)
    return distillation(LogitStandardization(inner, params["eps"]), inputs)


def dkd_abkd(params: dict, inputs: Inputs) -> Tensor:
    weights = params["alpha"], params["beta"], params["ab_alpha"], params["ab_beta"]
    return distillation(ABDKD(params["temperature"], 1.0, *weights, 1), inputs)


def ttm_abkd(params: dict, inputs: Inputs) -> Tensor:
    return distillation(ABTTM(params["power"], 1.0, 1.0, params["alpha"], params["beta"]), inputs)


def decoupled(method: IKL | GKL, params: dict, inputs: Inputs) -> Tensor:
    """With the class memory's rows as they are given for the samples."""
    memory = inputs.get("class_memory")
    method.memory = None if memory is None else GivenRows(memory)
    return distillation(method, inputs)


class GivenRows(torch.nn.Module):
    """A class memory whose rows are those of the case."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, epoch: Tensor, labels: Tensor, probabilities: Tensor) -> Tensor:
        """The rows [B, K] of the labels [B]."""
        return self.rows[labels]


def ikl(params: dict, inputs: Inputs) -> Tensor:
    temperatures = params["temperature"], params["weight_temperature"]
    method = IKL(*temperatures, 1.0, params["beta"], params["alpha"], warmup_epochs=1)
    return decoupled(method, params, inputs)


def gkl(params: dict, inputs: Inputs) -> Tensor:
    temperatures = params["temperature"], params["weight_temperature"]
    weights = params["beta"], params["alpha"], params["gamma"]
    return decoupled(GKL(*temperatures, 1.0, *weights, warmup_epochs=1), params, inputs)


def tekap(params: dict, inputs: Inputs) -> Tensor:
    noise = inputs["noise"]
    scales = params["teacher_scale"], params["noise_scale"]
    settings = 1.0, 1.0, params["noisy_weight"], len(noise), *scales
    return distillation(TeKAP(params["temperature"], *settings), inputs, noise.transpose(0, 1))


def deepkd(params: dict, inputs: Inputs) -> Tensor:
    logits = inputs["logits_student"], inputs["logits_teacher"], inputs["target"]
    tckd, nckd = deepkd_losses(*logits, params["temperature"], params["top_k"])
    return (params["alpha"] * tckd + params["beta"] * nckd).mean()


def ofa(params: dict, inputs: Inputs) -> Tensor:
    logits = inputs["logits_student"], inputs["logits_teacher"], inputs["target"]
    return ofa_loss(*logits, params["temperature"], params["exponent"]).mean()


def rld(params: dict, inputs: Inputs) -> Tensor:
    logits = inputs["logits_student"], inputs["logits_teacher"], inputs["target"]
    confidence = confidence_loss(*logits, params["confidence_temperature"])
    correlation = correlation_loss(*logits, params["temperature"])
    return (params["alpha"] * confidence + params["beta"] * correlation).mean()


def ldrld(params: dict, inputs: Inputs) -> Tensor:
    logits = inputs["logits_student"], inputs["logits_teacher"]
    local, rest = ldrld_losses(*logits, pair_weights(params["top_k"]), params["temperature"])
    return (params["alpha"] * local + params["beta"] * rest).mean()


def bkl(params: dict, inputs: Inputs) -> Tensor:
    settings = params["temperature"], params["alpha"], params["beta"], params["eps"]
    return bkl_loss(inputs["logits_student"], inputs["logits_teacher"], *settings).mean()


def crld(params: dict, inputs: Inputs) -> Tensor:
    return cast(Tensor, sum(terms_of(CRLD(**params), inputs).values()))


def sld(params: dict, inputs: Inputs) -> Tensor:
    weights = params["ce_weight"], params["kd_weight"], params["temperatures"]
    terms = terms_of(SLD(*weights), inputs, LATE if params["student_swap"] else 1.0)
    return cast(Tensor, sum(terms.values()))


LOSSES: dict[str, Callable[[dict, Inputs], Tensor]] = {
    "luminet": luminet,
    "normkd": normkd,
    "normkd+dkd": normkd_dkd,
    "abkd": abkd,
    "abkd+logit_standardization": abkd_standardised,
    "dkd+abkd": dkd_abkd,
    "ttm+abkd": ttm_abkd,
    "ikl": ikl,
    "gkl": gkl,
    "tekap": tekap,
    "deepkd": deepkd,
    "ofa": ofa,
    "rld": rld,
    "ldrld": ldrld,
    "bkl": bkl,
    "crld": crld,
    "sld": sld,
}
