"""Recipes that match relations between samples, and contrastive ones."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from kdbench.methods.cc import cc_loss
from kdbench.methods.crd import EPS, nce_loss
from kdbench.methods.pkt import pkt_loss
from kdbench.methods.rkd import relations
from kdbench.methods.sp import sp_loss

Inputs = dict[str, Tensor]


def sp(params: dict, inputs: Inputs) -> Tensor:
    deepest = max(int(key.rpartition("_")[2]) for key in inputs if key.startswith("feat_student_"))
    loss = sp_loss(inputs[f"feat_student_{deepest}"], inputs[f"feat_teacher_{deepest}"])
    # The reference differentiates with respect to every stage, and only the last is read.
    unread = [value for key, value in inputs.items() if value.requires_grad]
    return loss + 0 * sum(value.sum() for value in unread)


def cc(params: dict, inputs: Inputs) -> Tensor:
    return cc_loss(inputs["embed_student"], inputs["embed_teacher"])


def rkd(params: dict, inputs: Inputs) -> Tensor:
    settings = {"squared": params["squared"], "eps": params["eps"]}
    student, teacher = (
        relations(inputs[f"pooled_{who}"], **settings) for who in ("student", "teacher")
    )
    distance, angle = (F.smooth_l1_loss(*pair) for pair in zip(student, teacher, strict=True))
    return params["distance_weight"] * distance + params["angle_weight"] * angle


def pkt(params: dict, inputs: Inputs) -> Tensor:
    return pkt_loss(inputs["pooled_student"], inputs["pooled_teacher"], params["eps"])


def crd_nce(params: dict, inputs: Inputs) -> Tensor:
    eps = params.get("eps", EPS)
    return nce_loss(inputs["scores"], params["num_samples"], eps).mean()


LOSSES: dict[str, Callable[[dict, Inputs], Tensor]] = {
    "sp": sp,
    "cc": cc,
    "rkd": rkd,
    "pkt": pkt,
    "crd_nce": crd_nce,
}
GUARDED: dict[str, float] = {}  # the small constants of PKT and CRD are in ours too
