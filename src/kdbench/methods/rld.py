"""Refined logit distillation (Sun et al., ICCV 2025, arXiv 2408.07703)."""

import torch
from torch import Tensor

from kdbench.losses import kl_divergence, masked_log_probs, split_log_probs
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output


def confidence_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """T^2 KL((p^t_max, 1 - p^t_max) || (p^s_y, 1 - p^s_y)) of each sample, at temperature T.

    Shapes: logits [B, K], labels [B] -> [B], in nats. The student's probability of the label is
    to be the teacher's largest one, whether or not the teacher is right.
    """
    student, _ = split_log_probs(student_logits, labels, temperature)
    teacher, _ = split_log_probs(teacher_logits, teacher_logits.argmax(dim=1), temperature)
    return temperature**2 * kl_divergence(teacher, student)


def correlation_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """T^2 KL of teacher and student among the classes that the teacher puts below the label.

    Shapes: logits [B, K], labels [B] -> [B], in nats. The label itself and every class with a
    teacher logit at least as large are left out; 0 where nothing remains.
    """
    kept = teacher_logits < teacher_logits.gather(1, labels.unsqueeze(1))
    student = masked_log_probs(student_logits / temperature, kept)
    teacher = masked_log_probs(teacher_logits / temperature, kept)
    return temperature**2 * kl_divergence(teacher, student)


class RLD(Method):
    """L = ce_weight CE + min(epoch / warmup_epochs, 1) (alpha L_SC + beta L_MC).

    Sample confidence L_SC, weight `confidence_weight`, hands over how sure the teacher is and not
    of what; masked correlation L_MC, weight `correlation_weight`, is DKD's non-target term
    without the classes that a wrong teacher ranks above the label. Where the teacher is right the
    two are DKD's terms. Epochs count from 1 as in the released code (zju-SWJ/RLD).

    Departures: computed with log-softmax instead of the logarithm of masked sums of
    probabilities. The released code's own default is a temperature of 1 for L_SC, its published
    command sets both equal (--same-t): we follow the command.
    """

    reads_epoch = True

    def __init__(
        self,
        temperature: float = 4.0,
        confidence_temperature: float = 4.0,
        ce_weight: float = 1.0,
        confidence_weight: float = 1.0,
        correlation_weight: float = 8.0,
        warmup_epochs: int = 20,
    ) -> None:
        super().__init__()
        check_positive(
            temperature=temperature,
            confidence_temperature=confidence_temperature,
            warmup_epochs=warmup_epochs,
        )
        check_weights(
            ce_weight=ce_weight,
            confidence_weight=confidence_weight,
            correlation_weight=correlation_weight,
        )
        self.temperature = temperature
        self.confidence_temperature = confidence_temperature
        self.ce_weight = ce_weight
        self.confidence_weight = confidence_weight
        self.correlation_weight = correlation_weight
        self.warmup_epochs = warmup_epochs

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "confidence" and "correlation", each [B]."""
        (teacher,) = teachers
        warmup = torch.clamp(batch.epoch / self.warmup_epochs, max=1.0)
        logits = student.logits, teacher.logits, batch.labels
        confidence = confidence_loss(*logits, self.confidence_temperature)
        correlation = correlation_loss(*logits, self.temperature)
        return {
            "ce": self.label_term(batch, student),
            "confidence": warmup * self.confidence_weight * confidence,
            "correlation": warmup * self.correlation_weight * correlation,
        }
