"""Dynamic rectification KD (Amik et al. 2022, arXiv 2201.11319)."""

from typing import Literal

import torch
from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.losses import kl_divergence, smoothed_labels
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output


def rectify(logits: Tensor, labels: Tensor) -> Tensor:
    """R(v, y): the row's largest value and the label's value exchanged.

    Shapes: logits [B, K], labels [B] -> [B, K]; the input is not modified. A transposition, so it
    commutes with softmax and with the temperature: swapping probabilities is the same.
    """
    top, label = logits.argmax(dim=1, keepdim=True), labels.unsqueeze(1)
    raised = logits.scatter(1, label, logits.gather(1, top))
    return raised.scatter(1, top, logits.gather(1, label))


def is_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether another class's value exceeds the label's; a tie with the label is right.

    Shapes: logits [B, K], labels [B] -> [B] bool.
    """
    return logits.gather(1, labels.unsqueeze(1)).squeeze(1) < logits.amax(dim=1)


class DRKD(Method):
    """L = (1 - a) CE + a m (T^2 / K) KL(softmax(R(z^t, y) / T) || softmax(z^s / T)).

    a is `distill_weight`, m `multiplier`; R is `rectify`; the teacher is a trained network of the
    student's architecture (teacher=self). `reduction="element_mean"` is the released code's average
    over all B K elements, hence 1/K; with "batchmean" the weight before KL is `kl_weight` alone,
    independent of the number of classes (a m T^2 / K gives the same loss). `rule`, where the
    teacher is wrong: "swap" is the method, "mask" drops the divergence, "ka_ls" replaces the target
    by the smoothed label (knowledge adjustment, arXiv 1911.07471), "none" is Tf-KD_self. `side`
    says whose logits "swap" changes.

    Departures: ours computes no gradient through the teacher and writes nothing in place, so the
    training accuracy of side="student" is not corrupted; as in the released code, that side's
    cross-entropy reads the swapped logits too. A tie with the label is right for "mask" and
    "ka_ls" (a swap of equal values changes nothing); that "ka_ls" does not soften the smoothed
    label by T is our reading. The multiplier is missing in the released settings of ResNet-50 and
    AlexNet (the run fails): use 1.
    """

    def __init__(
        self,
        temperature: float = 20.0,
        distill_weight: float = 0.95,
        multiplier: float = 1.0,
        reduction: Literal["element_mean", "batchmean"] = "element_mean",
        kl_weight: float | None = None,
        rule: Literal["swap", "mask", "ka_ls", "none"] = "swap",
        side: Literal["teacher", "student", "both"] = "teacher",
        smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, multiplier=multiplier)
        if not 0 <= distill_weight <= 1:
            raise ConfigError(
                f"method.distill_weight must be between 0 and 1, not {distill_weight}"
            )
        if not 0 < smoothing < 1:
            raise ConfigError(f"method.smoothing must be above 0 and below 1, not {smoothing}")
        if (reduction == "batchmean") != (kl_weight is not None):
            raise ConfigError(
                "method.kl_weight goes with method.reduction=batchmean, and only there"
            )
        if side != "teacher" and rule != "swap":
            raise ConfigError(f"method.side={side} needs method.rule=swap, not {rule}")
        check_weights(kl_weight=kl_weight or 0.0)
        self.temperature = temperature
        self.ce_weight = 1 - distill_weight
        self.weight = distill_weight * multiplier * temperature**2  # before the element mean
        self.kl_weight = kl_weight
        self.rule = rule
        self.swaps_teacher = rule == "swap" and side != "student"
        self.swaps_student = rule == "swap" and side != "teacher"
        self.smoothing = smoothing

    def divergence(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """KL between the softened rows after the teacher's rule, without T^2 or weight.

        Shapes: logits [B, K], labels [B] -> [B], in nats.
        """
        wrong = is_wrong(teacher_logits, labels)
        if self.swaps_teacher:
            teacher_logits = rectify(teacher_logits, labels)
        target = torch.log_softmax(teacher_logits / self.temperature, dim=1)
        if self.rule == "ka_ls":
            smoothed = smoothed_labels(teacher_logits, labels, self.smoothing, "others").log()
            target = torch.where(wrong.unsqueeze(1), smoothed, target)
        student_log_probs = torch.log_softmax(student_logits / self.temperature, dim=1)
        divergence = kl_divergence(target, student_log_probs)
        return divergence * ~wrong if self.rule == "mask" else divergence

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "kd" [B]."""
        (teacher,) = teachers
        if self.swaps_student:
            student = student._replace(logits=rectify(student.logits, batch.labels))
        weight = self.weight / student.logits.shape[1] if self.kl_weight is None else self.kl_weight
        divergence = self.divergence(student.logits, teacher.logits, batch.labels)
        return {"ce": self.label_term(batch, student), "kd": weight * divergence}

    def observe(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """ "swapped" [B]: whether the teacher's row is wrong, which is what "swap" exchanges.

        Where it is about 0 over an epoch, the method is Tf-KD_self.
        """
        return {"swapped": is_wrong(teachers[0].logits, batch.labels)}
