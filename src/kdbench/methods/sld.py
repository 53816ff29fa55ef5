"""SLD, swapped logit distillation (Multimedia Systems 2025)."""

import torch
from torch import Tensor

from kdbench.losses import kd_loss, total
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output

TEMPERATURES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)  # of the released code


def swapped(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits whose largest entry has changed places with the label's, where they differ.

    Shapes: logits [B, K], labels [B] -> [B, K].
    """
    label, top = labels.unsqueeze(1), logits.argmax(dim=1, keepdim=True)
    at_label, at_top = logits.gather(1, label), logits.gather(1, top)
    return logits.scatter(1, top, at_label).scatter(1, label, at_top)


class SLD(Method):
    """L = sum_v ce_weight CE + kd_weight sum_T [KL_T(swap(t) -> s) + late KL_T(swap(s) -> s)].

    Two views of each image; KL_T with T^2 at each of several temperatures. `swap` puts the right
    label on top, for a wrong teacher by exchanging two logits; from `student_swap_epoch` + 1 on
    the student's own swapped logits teach it too, and as in the released code the gradient runs
    through both sides of that term. "swap" has a row per view, times V because the step takes
    means.

    Departures: none known in the loss. The strong view is this benchmark's (data/randaugment).
    """

    reads_epoch = True
    views = 2

    def __init__(
        self,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
        temperatures: list[float] | None = None,
        student_swap_epoch: int = 150,
    ) -> None:
        super().__init__()
        check_weights(
            ce_weight=ce_weight, kd_weight=kd_weight, student_swap_epoch=student_swap_epoch
        )
        chosen = TEMPERATURES if temperatures is None else temperatures
        for temperature in chosen:
            check_positive(temperatures=temperature)
        self.ce_weight, self.kd_weight = ce_weight, kd_weight
        self.temperatures = tuple(chosen)
        self.student_swap_epoch = student_swap_epoch

    def view_loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The distillation of one view, [B]."""
        late = (batch.epoch > self.student_swap_epoch).to(student.dtype)
        theirs, own = swapped(teacher, batch.labels), swapped(student, batch.labels)
        return total(
            kd_loss(student, theirs, temperature) + late * kd_loss(student, own, temperature)
            for temperature in self.temperatures
        )

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "swap" [V, B]."""
        (teacher,) = teachers
        pairs = zip(student.logits.unbind(), teacher.logits.unbind(), strict=True)
        rows = torch.stack([self.view_loss(own, theirs, batch) for own, theirs in pairs])
        return {
            "ce": self.label_term(batch, student),
            "swap": self.kd_weight * len(rows) * rows,
        }
