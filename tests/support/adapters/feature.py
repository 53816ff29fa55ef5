"""Recipes that match feature maps."""

from collections.abc import Callable

from torch import Tensor

from kdbench.methods.at import at_loss
from kdbench.methods.cat_kd import cat_loss
from kdbench.methods.nst import nst_loss
from kdbench.methods.ofd import partial_l2
from kdbench.methods.reviewkd import hierarchical_context_loss
from support.pretraining_losses import ab_loss, fsp_loss

Inputs = dict[str, Tensor]


def maps(inputs: Inputs, network: str) -> list[Tensor]:
    """The features of "student" or "teacher", shallow to deep."""
    names = [name for name in inputs if name.startswith(f"feat_{network}_")]
    return [inputs[f"feat_{network}_{stage}"] for stage in range(len(names))]


def pairs(inputs: Inputs) -> list[tuple[Tensor, Tensor]]:
    return list(zip(maps(inputs, "student"), maps(inputs, "teacher"), strict=True))


def at(params: dict, inputs: Inputs) -> Tensor:
    return sum(at_loss(*pair, params["p"]).mean() for pair in pairs(inputs))


def nst(params: dict, inputs: Inputs) -> Tensor:
    return sum(nst_loss(*pair).mean() for pair in pairs(inputs))


def fsp(params: dict, inputs: Inputs) -> Tensor:
    return fsp_loss(maps(inputs, "student"), maps(inputs, "teacher")).mean()


def ofd(params: dict, inputs: Inputs) -> Tensor:
    margin = inputs["margin"][0]
    return sum(partial_l2(*pair, margin).mean() for pair in pairs(inputs))


def reviewkd_hcl(params: dict, inputs: Inputs) -> Tensor:
    return sum(hierarchical_context_loss(*pair).mean() for pair in pairs(inputs))


def ab(params: dict, inputs: Inputs) -> Tensor:
    student, teacher = maps(inputs, "student"), maps(inputs, "teacher")
    return ab_loss(student, teacher, params["margin"]).mean()


def cat_kd(params: dict, inputs: Inputs) -> Tensor:
    maps = inputs["cam_student"], inputs["cam_teacher"]
    return cat_loss(*maps, params["cam_resolution"], params["normalize"]).mean()


LOSSES: dict[str, Callable[[dict, Inputs], Tensor]] = {
    "at": at,
    "nst": nst,
    "fsp": fsp,
    "ofd": ofd,
    "reviewkd_hcl": reviewkd_hcl,
    "ab": ab,
    "cat_kd": cat_kd,
}
