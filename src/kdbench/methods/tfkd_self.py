"""Teacher-free KD from a trained copy (Yuan et al., CVPR 2020, arXiv 1909.11723)."""

from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.losses import kd_loss
from kdbench.methods.base import Method, check_positive
from kdbench.types import Batch, Output


class TfKDSelf(Method):
    """L = (1 - a) CE + a m (T^2 / K) KL(softmax(z^t / T) || softmax(z^s / T)); a = distill_weight.

    The teacher is a network of the student's architecture trained with labels alone (teacher=self).
    The factor 1/K is the released code's: its divergence averages over all B K elements, which
    makes the same settings weaker on data with more classes; the multiplier m compensates.

    Departures: none in the loss. The multiplier is missing in the released settings of ResNet-50
    (the run fails): use 1.
    """

    soft_labels = True

    def __init__(
        self, temperature: float = 20.0, distill_weight: float = 0.95, multiplier: float = 1.0
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, multiplier=multiplier)
        if not 0 <= distill_weight <= 1:
            raise ConfigError(
                f"method.distill_weight must be between 0 and 1, not {distill_weight}"
            )
        self.temperature = temperature
        self.ce_weight = 1 - distill_weight
        self.distill_weight = distill_weight
        self.multiplier = multiplier

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "kd" [B]."""
        (teacher,) = teachers
        divergence = kd_loss(student.logits, teacher.logits, self.temperature)
        weight = self.distill_weight * self.multiplier / student.logits.shape[1]
        return {"ce": self.label_term(batch, student), "kd": weight * divergence}
