"""Attention transfer (Zagoruyko & Komodakis, ICLR 2017, arXiv 1612.03928)."""

from torch import Tensor

from kdbench.losses import attention_map, total
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.networks.adapters import match_smaller, paired_maps
from kdbench.types import Batch, Output, Probe


def at_loss(student_map: Tensor, teacher_map: Tensor, power: float) -> Tensor:
    """Mean over the positions of (A(F^s) - A(F^t))^2 of each sample, at one stage.

    Shapes: [B, C, H, W] and [B, C', H', W'] -> [B]; the larger map is average-pooled first.
    """
    student_map, teacher_map = match_smaller(student_map, teacher_map)
    difference = attention_map(student_map, power) - attention_map(teacher_map, power)
    return difference.square().mean(dim=1)


class AT(Method):
    """L = ce_weight CE + at_weight sum_l mean_{H,W} (A(F^s_l) - A(F^t_l))^2.

    A(F) = a / ||a|| with a = mean_C |F|^power, l over the shared stages (section 3.1).

    Departures: the distance is the released code's, a mean of squares over the positions; the
    paper writes the norm itself (equation 2). That code takes F^power, which differs from
    |F|^power where the power is odd and the map has negative values (wrn).
    """

    soft_labels = True

    def __init__(
        self, power: float = 2.0, ce_weight: float = 1.0, at_weight: float = 1000.0
    ) -> None:
        super().__init__()
        check_positive(power=power)
        check_weights(ce_weight=ce_weight, at_weight=at_weight)
        self.power = power
        self.ce_weight = ce_weight
        self.at_weight = at_weight

    def setup(self, probe: Probe) -> None:
        """Find the stages that both networks have."""
        self.pairs = paired_maps(probe)
        self.taps = tuple(theirs for _, theirs in self.pairs)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "at" [B]."""
        (teacher,) = teachers
        distance = total(
            at_loss(student.taps[own], teacher.taps[theirs], self.power)
            for own, theirs in self.pairs
        )
        return {"ce": self.label_term(batch, student), "at": self.at_weight * distance}
