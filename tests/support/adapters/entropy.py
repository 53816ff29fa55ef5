"""Recipes that weigh or correct by entropy, and self-distillation."""

from collections.abc import Callable

import torch
from torch import Tensor

from kdbench.methods.base import Method
from kdbench.methods.dkd import DKD
from kdbench.methods.dr_kd import DRKD
from kdbench.methods.entropy_weight import EntropyWeight
from kdbench.methods.kd import KD
from kdbench.methods.label_smoothing import LabelSmoothing
from kdbench.methods.tfkd_reg import TfKDReg
from kdbench.methods.tfkd_self import TfKDSelf
from kdbench.types import Batch, Output

Inputs = dict[str, Tensor]


def total(method: Method, inputs: Inputs) -> Tensor:
    """The whole loss of a method on logits: the sum of its terms' means."""
    labels = inputs["target"]
    batch = Batch(torch.empty(0), labels, torch.arange(len(labels)), torch.tensor(1.0))
    teachers = [Output(inputs[key], {}) for key in ("logits_teacher",) if key in inputs]
    terms = method(batch, Output(inputs["logits_student"], {}), tuple(teachers))
    return sum(term.mean() for term in terms.values())


def label_smoothing(params: dict, inputs: Inputs) -> Tensor:
    spread = "others" if "C-1" in params["convention"] else "all"
    return total(LabelSmoothing(params["smoothing"], spread), inputs)


def tfkd_reg(params: dict, inputs: Inputs) -> Tensor:
    method = TfKDReg(
        params["temperature"], params["alpha"], params["multiplier"], params["correct_prob"]
    )
    return total(method, inputs)


def tfkd_self(params: dict, inputs: Inputs) -> Tensor:
    method = TfKDSelf(params["temperature"], params["alpha"], params["multiplier"])
    return total(method, inputs)


def drkd(params: dict, inputs: Inputs) -> Tensor:
    method = DRKD(params["temperature"], params["alpha"], params["multiplier"])
    return total(method, inputs)


def weighted(inner: Method, weight: str, params: dict, inputs: Inputs) -> Tensor:
    """The distillation part alone of a recipe under entropy weights."""
    bound = params.get("entropy_upper_bound", "log_c")
    method = EntropyWeight(inner, weight, params["entropy_temperature"], bound)
    labels = inputs.get("target", torch.zeros(len(inputs["logits_student"]), dtype=torch.int64))
    batch = Batch(torch.empty(0), labels, torch.arange(len(labels)), torch.tensor(1.0))
    teacher = Output(inputs["logits_teacher"], {})
    terms = method(batch, Output(inputs["logits_student"], {}), (teacher,))
    return sum(term.mean() for name, term in terms.items() if name != "ce")


def er_kd(params: dict, inputs: Inputs) -> Tensor:
    return weighted(KD(params["temperature"], kd_weight=1.0), "er", params, inputs)


def ea_kd(params: dict, inputs: Inputs) -> Tensor:
    return weighted(KD(params["temperature"], kd_weight=1.0), "ea", params, inputs)


def ea_dkd(params: dict, inputs: Inputs) -> Tensor:
    weights = {"tckd_weight": params["alpha"], "nckd_weight": params["beta"]}
    inner = DKD(params["temperature"], warmup_epochs=1, **weights)
    return weighted(inner, "ea", params, inputs)


LOSSES: dict[str, Callable[[dict, Inputs], Tensor]] = {
    "label_smoothing": label_smoothing,
    "tfkd_reg": tfkd_reg,
    "tfkd_self": tfkd_self,
    "drkd": drkd,
    "er_kd": er_kd,
    "ea_kd": ea_kd,
    "dkd+ea": ea_dkd,
}

# The released EA-KD adds 1e-10 inside the logarithms of both entropies: each shifts by K 1e-10. Of
# the loss that is 1e-9 (K = 10) or 4e-9 (K = 100) where logits have a deviation of 1 to 3, and
# below 1e-8 up to a deviation of 10 (K = 200: 1.3e-8); 1e-7 bounds all of them. ER-KD and EA-DKD
# clamp at 1e-10, which does not bind.
GUARDED: dict[str, float] = {"ea_kd": 1e-7}
