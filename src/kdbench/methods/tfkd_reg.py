"""Teacher-free KD with a hand-made teacher (Yuan et al., CVPR 2020, arXiv 1909.11723)."""

import torch
from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.losses import kl_divergence, smoothed_labels
from kdbench.methods.base import Method, check_positive
from kdbench.types import Batch, Output


def virtual_teacher(
    logits: Tensor, labels: Tensor, correct_prob: float, temperature: float
) -> Tensor:
    """log softmax(u / T), u = correct_prob on the label and the rest shared by the others.

    Shapes: logits [B, K] (for shape and type), labels [B] -> [B, K]. The probabilities u are used
    as logits, as in the released code: with T = 20 and K = 100 the label gets 0.0105.
    """
    teacher = smoothed_labels(logits, labels, 1 - correct_prob, "others")
    return torch.log_softmax(teacher / temperature, dim=1)


class TfKDReg(Method):
    """L = (1 - a) CE + a m (1/K) KL(softmax(u / T) || softmax(z)), per sample; a = distill_weight.

    u is the virtual teacher of `virtual_teacher`, m the multiplier. The factor 1/K is the released
    code's: its divergence averages over all B K elements (KLDivLoss with reduction "mean").

    Departures: none in the value. Kept as released: probabilities are used as logits, the student
    is not softened, there is no T^2. The loop over the batch is a scatter. The multiplier is
    missing in the released settings of DenseNet-121 and ResNeXt (the run fails): use 1.
    """

    num_teachers = 0

    def __init__(
        self,
        temperature: float = 40.0,
        distill_weight: float = 0.95,
        multiplier: float = 1.0,
        correct_prob: float = 0.99,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, multiplier=multiplier)
        for name, value in {"distill_weight": distill_weight, "correct_prob": correct_prob}.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"method.{name} must be between 0 and 1, not {value}")
        self.temperature = temperature
        self.ce_weight = 1 - distill_weight
        self.distill_weight = distill_weight
        self.multiplier = multiplier
        self.correct_prob = correct_prob

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "reg" [B]."""
        logits = student.logits
        target = virtual_teacher(logits, batch.labels, self.correct_prob, self.temperature)
        divergence = kl_divergence(target, torch.log_softmax(logits, dim=1))
        weight = self.distill_weight * self.multiplier / logits.shape[1]
        return {"ce": self.label_term(batch, student), "reg": weight * divergence}
