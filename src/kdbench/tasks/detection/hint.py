"""A hint from the teacher's feature pyramid: FitNet's idea on Faster R-CNN's maps."""

import torch
from torch import Tensor, nn

from kdbench.errors import ConfigError
from kdbench.methods.base import Method, check_weights
from kdbench.networks.adapters import check_map
from kdbench.types import Batch, Output, Probe

LEVELS = ("p2", "p3", "p4", "p5", "p6")


class PyramidHint(Method):
    """L = inner's + hint_weight mean_l mean_{C,H,W} (r_l(P_l^s) - P_l^t)^2 over p2 ... p6.

    r_l is a 1x1 convolution where the channels differ, and the identity where they agree, such as
    256 and 256. The other terms are the inner recipe's: labels alone, or a logit method.

    Departures: FitNet (Romero et al., ICLR 2015, arXiv 1412.6550) is for classifiers, with one map
    and a phase of its own; no score of this baseline is published.
    """

    tasks = ("detection",)
    taps = LEVELS

    def __init__(self, inner: Method, hint_weight: float = 1.0) -> None:
        super().__init__()
        check_weights(hint_weight=hint_weight)
        if "detection" not in inner.tasks:
            raise ConfigError("method.inner is not for detection: choose ce, kd, er_kd or ea_kd")
        self.inner = inner
        self.hint_weight = hint_weight

    def setup(self, probe: Probe) -> None:
        """Build the convolutions from the maps' shapes."""
        self.inner.setup(probe)
        channels = [
            (check_map(probe.student, level)[0], check_map(probe.teachers[0], level)[0])
            for level in LEVELS
        ]
        self.adapters = nn.ModuleList(
            nn.Identity() if student == teacher else nn.Conv2d(student, teacher, 1)
            for student, teacher in channels
        )

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """The inner recipe's terms [R], and "hint" [B]."""
        (teacher,) = teachers
        hints = [
            (adapter(student.taps[level]) - teacher.taps[level]).square().mean(dim=(1, 2, 3))
            for level, adapter in zip(LEVELS, self.adapters, strict=True)
        ]
        terms = self.inner(batch, student, teachers if self.inner.num_teachers else ())
        return {**terms, "hint": self.hint_weight * torch.stack(hints).mean(dim=0)}

    def observe(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Return the inner recipe's."""
        return self.inner.observe(batch, student, teachers)
