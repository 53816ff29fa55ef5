"""FitNet, hints from an intermediate layer (Romero et al., ICLR 2015, arXiv 1412.6550)."""

from torch import Tensor

from kdbench.methods.base import Method, check_weights
from kdbench.networks.adapters import check_map, conv_regressor
from kdbench.types import Batch, Output, Probe


class FitNet(Method):
    """L = ce_weight CE + hint_weight mean_{C,H,W} (r(F^s) - F^t)^2, equation 3.

    F is the map at `tap`; r is a convolution, BN and ReLU (`adapters.conv_regressor`), trained
    with the student.

    Departures: one phase, as RepDistiller and mdistiller train it; the paper first trains the
    lower half of the student on the hint alone, then the student by KD. r ends in a ReLU, as
    theirs: the negative part of a raw map (wrn) cannot be reached.
    """

    soft_labels = True

    def __init__(
        self, tap: str = "stage2", ce_weight: float = 1.0, hint_weight: float = 100.0
    ) -> None:
        super().__init__()
        check_weights(ce_weight=ce_weight, hint_weight=hint_weight)
        self.tap = tap
        self.taps = (tap,)
        self.ce_weight = ce_weight
        self.hint_weight = hint_weight

    def setup(self, probe: Probe) -> None:
        """Build the regressor from the two maps' shapes."""
        student, teacher = (
            check_map(probe.student, self.tap),
            check_map(probe.teachers[0], self.tap),
        )
        self.regressor = conv_regressor(student, teacher)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "hint" [B]."""
        (teacher,) = teachers
        difference = self.regressor(student.taps[self.tap]) - teacher.taps[self.tap]
        return {
            "ce": self.label_term(batch, student),
            "hint": self.hint_weight * difference.square().mean(dim=(1, 2, 3)),
        }
