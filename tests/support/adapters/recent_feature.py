"""Recipes of 2021 to 2026 that match features, and Wasserstein distances between logits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.losses import cross_entropy, kd_loss
from kdbench.methods.dcd import dcd_loss
from kdbench.methods.fcfd import appearance
from kdbench.methods.ickd import ickd_loss
from kdbench.methods.semckd import SemCKD, attended_distance
from kdbench.methods.wasserstein import cka_distances, logit_losses, moment_distance, sharpened

Inputs = dict[str, Tensor]


def maps(inputs: Inputs, network: str) -> list[Tensor]:
    """The features of "student" or "teacher", shallow to deep."""
    names = [name for name in inputs if name.startswith(f"feat_{network}_")]
    return [inputs[f"feat_{network}_{stage}"] for stage in range(len(names))]


def wkd_f(params: dict, inputs: Inputs) -> Tensor:
    settings = params["grid"], params["mean_weight"], params["eps"]
    return moment_distance(inputs["feat_student_0"], inputs["feat_teacher_0"], *settings).mean()


def wkd_l(params: dict, inputs: Inputs) -> Tensor:
    names = ("logits_student", "logits_teacher", "target", "costs")
    settings = (params[key] for key in ("temperature", "regularization", "iterations", "eps"))
    target, transport = logit_losses(*(inputs[name] for name in names), *settings)
    return target.mean() + params["transport_weight"] * transport.mean()


def wkd_cost(params: dict, inputs: Inputs) -> Tensor:
    return sharpened(cka_distances(inputs["class_features"]), params["sharpness"])


def ickd(params: dict, inputs: Inputs) -> Tensor:
    projected = F.conv2d(inputs["feat_student_0"], inputs["projector_weight"])
    norm = {"weight": inputs["norm_weight"], "bias": inputs["norm_bias"], "training": True}
    normed = F.batch_norm(projected, None, None, eps=params["norm_eps"], **norm)
    return ickd_loss(normed, inputs["feat_teacher_0"]).mean()


def dcd(params: dict, inputs: Inputs) -> Tensor:
    embeddings = inputs["embed_student"], inputs["embed_teacher"], inputs["log_scale"]
    return dcd_loss(*embeddings, params["invariance_weight"], params["max_scale"])


def fill(module: nn.Module, values: list[Tensor]) -> None:
    """Give a module's parameters values, in their order."""
    parameters = list(module.parameters())
    assert len(parameters) == len(values)
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def semckd_method(params: dict, inputs: Inputs) -> SemCKD:
    """The method with a case's weights."""
    student, teacher = maps(inputs, "student"), maps(inputs, "teacher")
    method = SemCKD(batch_size=len(student[0]), factor=params["factor"])
    method.build([f.shape[1] for f in student], [f.shape[1] for f in teacher])
    method.double()
    layer = ("weight_1", "bias_1", "weight_2", "bias_2")
    for name, encoders in (("query", method.queries), ("key", method.keys)):
        for i, encoder in enumerate(encoders):
            fill(encoder, [inputs[f"{name}_{i}_{part}"] for part in layer])
    norms = ("norm_1_weight", "norm_1_bias", "conv_2", "norm_2_weight", "norm_2_bias")
    for i, row in enumerate(method.regressors):
        for j, module in enumerate(row):
            parts = [inputs.get(f"regressor_{i}_{j}_{p}") for p in ("conv_1", *norms, "conv_3")]
            if parts[0] is not None:
                fill(module, parts)
    return method


def semckd(params: dict, inputs: Inputs) -> Tensor:
    method = semckd_method(params, inputs)
    return method.match(maps(inputs, "student"), maps(inputs, "teacher"))


def semckd_attention(params: dict, inputs: Inputs) -> Tensor:
    method = semckd_method(params, inputs)
    return method.attention(maps(inputs, "student"), maps(inputs, "teacher"))


def semckd_distance(params: dict, inputs: Inputs) -> Tensor:
    attention = inputs["attention"]
    pairs = [
        [(inputs[f"value_student_{i}_{j}"], inputs[f"value_teacher_{i}_{j}"]) for j in range(t)]
        for i, t in enumerate([attention.shape[2]] * attention.shape[1])
    ]
    return attended_distance(attention, pairs)


def fcfd(params: dict, inputs: Inputs) -> Tensor:
    """The whole loss: the parts that the method weighs, with every given path drawn."""
    teacher, count = maps(inputs, "teacher"), len(maps(inputs, "teacher"))
    distance = appearance(maps(inputs, "student"), teacher).mean()
    mixed = [key for key in inputs if key.startswith("logits_mixture_")]
    logits, temperature = inputs["logits_teacher"], params["temperature"]
    mixture = sum(kd_loss(inputs[key], logits, temperature).mean() for key in mixed)
    starts = {int(key.split("_")[3]) for key in inputs if key.startswith("feat_mixture_")}
    for start in starts:
        later = [inputs[f"feat_mixture_{stage}_{start}"] for stage in range(start + 1, count)]
        distance = distance + appearance(later, teacher).mean()
    warmup = min(1.0, (params["epoch"] + 1) / 20)
    label = cross_entropy(inputs["logits_student"], inputs["target"]).mean()
    kd = kd_loss(inputs["logits_student"], logits, temperature).mean()
    return (
        params["feature_weight"] * warmup * distance
        + params["ce_weight"] * label
        + params["kd_weight"] * kd
        + params["mixture_weight"] * mixture
    )


LOSSES: dict[str, Callable[[dict, Inputs], Tensor]] = {
    "wkd_f": wkd_f,
    "wkd_l": wkd_l,
    "wkd_cost": wkd_cost,
    "ickd": ickd,
    "dcd": dcd,
    "fcfd": fcfd,
    "semckd": semckd,
    "semckd_attention": semckd_attention,
    "semckd_distance": semckd_distance,
}
