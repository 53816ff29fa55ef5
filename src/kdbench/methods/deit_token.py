"""DeiT's distillation token (Touvron et al., ICML 2021, arXiv 2012.12877)."""

from typing import Literal

from torch import Tensor

from kdbench.losses import cross_entropy, kd_loss
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output

CLASS_HEAD, TOKEN_HEAD = "head", "head_dist"  # taps of a student with two heads


class DeiTToken(Method):
    """L = ce_weight CE(z^class, y) + token_weight D(z^token, teacher); evaluation averages the two.

    D is the cross-entropy with the teacher's class (hard) or T^2 KL with its distribution (soft).
    The student is a timm network with a distillation token, as deit_tiny_distilled_patch16_224.

    Departures: the released code divides soft distillation by the number of classes as well (a
    mean over all of the batch's numbers); ours is the paper's, as timm's TokenDistillationTask is.
    """

    soft_labels = True
    own_taps = (CLASS_HEAD, TOKEN_HEAD)

    def __init__(
        self,
        distillation: Literal["hard", "soft"] = "hard",
        ce_weight: float = 0.5,
        token_weight: float = 0.5,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_weights(ce_weight=ce_weight, token_weight=token_weight)
        self.hard = distillation == "hard"
        self.ce_weight, self.token_weight = ce_weight, token_weight
        self.temperature = temperature

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" and "token", each [B]."""
        (teacher,) = teachers
        token = student.taps[TOKEN_HEAD]
        if self.hard:
            loss = cross_entropy(token, teacher.logits.argmax(dim=1))
        else:
            loss = kd_loss(token, teacher.logits, self.temperature)
        own = student._replace(logits=student.taps[CLASS_HEAD])
        return {"ce": self.label_term(batch, own), "token": self.token_weight * loss}
