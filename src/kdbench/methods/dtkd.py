"""Dynamic temperature KD (Wei & Bai 2024, arXiv 2404.12711)."""

import torch
from torch import Tensor

from kdbench.losses import kd_loss, kl_divergence
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output

SMALLEST = 1e-2  # ours: the least largest logit, so that no temperature is negative or 0


def shared_temperatures(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """T^s = 2 y T / (x + y) and T^t = 2 x T / (x + y), with y = max_k z^s_k and x = max_k z^t_k.

    Shapes: logits [B, K] -> two tensors [B, 1], whose mean is T. Divided by its own temperature,
    each network's largest logit is (x + y) / (2 T): equally sharp (paper, equations 3 to 5).
    """
    student = student_logits.amax(dim=1, keepdim=True).clamp(min=SMALLEST)
    teacher = teacher_logits.amax(dim=1, keepdim=True).clamp(min=SMALLEST)
    both = student + teacher
    return 2 * student / both * temperature, 2 * teacher / both * temperature


def dtkd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^t T^s KL(softmax(z^t / T^t) || softmax(z^s / T^s)) of each sample.

    Shapes: logits [B, K] -> [B], in nats. The gradient also flows through both temperatures, as
    in the released code.
    """
    student_t, teacher_t = shared_temperatures(student_logits, teacher_logits, temperature)
    student_log_probs = torch.log_softmax(student_logits / student_t, dim=1)
    teacher_log_probs = torch.log_softmax(teacher_logits / teacher_t, dim=1)
    scale = (student_t * teacher_t).squeeze(1)
    return scale * kl_divergence(teacher_log_probs, student_log_probs)


class DTKD(Method):
    """L = ce_weight CE + min(epoch / warmup_epochs, 1) (dtkd_weight L_DTKD + kd_weight L_KD).

    L_DTKD gives each sample a temperature for the teacher and one for the student, on both sides
    of the reference T, so that the two networks are equally sharp; L_KD is T^2 KL at T itself.
    The paper's alpha is `dtkd_weight`, its beta `kd_weight`; epochs count from 1 as in the
    released code.

    Departures: the paper defines sharpness as logsumexp(z) and takes the largest logit from its
    upper bound; the authors later wrote (README of JinYu1998/DTKD) that this step of equations 4
    and 5 does not follow, and that the results stand with the formula as it is, which is ours.
    Where a network's largest logit is below 0.01, the released temperature turns negative or
    infinite; ours uses 0.01 there.
    """

    soft_labels = True
    reads_epoch = True

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        dtkd_weight: float = 3.0,
        kd_weight: float = 1.0,
        warmup_epochs: int = 20,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, warmup_epochs=warmup_epochs)
        check_weights(ce_weight=ce_weight, dtkd_weight=dtkd_weight, kd_weight=kd_weight)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.dtkd_weight = dtkd_weight
        self.kd_weight = kd_weight
        self.warmup_epochs = warmup_epochs

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "dtkd" and "kd", each [B]."""
        (teacher,) = teachers
        warmup = torch.clamp(batch.epoch / self.warmup_epochs, max=1.0)
        dynamic = dtkd_loss(student.logits, teacher.logits, self.temperature)
        static = kd_loss(student.logits, teacher.logits, self.temperature)
        return {
            "ce": self.label_term(batch, student),
            "dtkd": warmup * self.dtkd_weight * dynamic,
            "kd": warmup * self.kd_weight * static,
        }
