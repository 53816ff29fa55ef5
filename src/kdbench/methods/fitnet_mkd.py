"""FitNet hints from several teachers, beside their averaged logits (baseline of CA-MKD)."""

import torch
from torch import Tensor, nn

from kdbench.losses import kd_losses
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.networks.adapters import check_map, conv_regressor
from kdbench.types import Batch, Output, Probe


class FitNetMKD(Method):
    """L = ce_weight CE + kd_weight mean_t T^2 KL_t + hint_weight mean_t MSE(r_t(F^s), F^t).

    F is the second stage, r_t a convolution to teacher t's shape with BN and ReLU, MSE the mean
    over all elements. KL_t as in `aver`.

    Departures: the released codes of AE-KD and CA-MKD copy the hint losses into a new tensor, so
    that the hint passes no gradient and the recipe trains like `aver`; here it does, and
    `hint_detached` replays that defect. They leave the hint out of epoch 1, here it is always on.
    """

    soft_labels = True
    num_teachers = None
    taps = ("stage2",)

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        hint_weight: float = 100.0,
        hint_detached: bool = False,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_weights(ce_weight=ce_weight, kd_weight=kd_weight, hint_weight=hint_weight)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.hint_weight = hint_weight
        self.hint_detached = hint_detached

    def setup(self, probe: Probe) -> None:
        """Make a regressor for each teacher."""
        student = check_map(probe.student, "stage2")
        shapes = [check_map(teacher, "stage2") for teacher in probe.teachers]
        self.regressors = nn.ModuleList(conv_regressor(student, shape) for shape in shapes)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "kd" and "hint", each [B]."""
        kd = kd_losses(student.logits, [t.logits for t in teachers], self.temperature)
        errors = [
            (regressor(student.taps["stage2"]) - teacher.taps["stage2"]).square().flatten(1)
            for regressor, teacher in zip(self.regressors, teachers, strict=True)
        ]
        hint = torch.stack([error.mean(dim=1) for error in errors]).mean(dim=0)
        return {
            "ce": self.label_term(batch, student),
            "kd": self.kd_weight * kd.mean(dim=0),
            "hint": self.hint_weight * (hint.detach() if self.hint_detached else hint),
        }
