"""IKL, the improved KL of the decoupled divergence (NeurIPS 2024, arXiv 2305.13948)."""

import torch
from torch import Tensor

from kdbench.losses import weighted_margins
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.methods.class_memory import ClassMemory
from kdbench.types import Batch, Output, Probe


class IKL(Method):
    """L = ce_weight CE + warm-up (margin_weight M + soft_weight H(p^t(T), p^s(T))), no T^2.

    M = sum_jk c_j c_k (d_j - d_k)^2 / 4 with d = z^t - z^s, H the cross-entropy of the soft labels.
    c is softmax(z^t / weight_temperature), or with `class_memory` the mean of it over the previous
    epoch's images of the sample's class (uniform in the first); it is a constant. The warm-up is
    min(epoch / warmup_epochs, 1). The paper's beta is `margin_weight`, its alpha `soft_weight`.

    Departures: the sum over K x K pairs is computed as a variance under c, which is equal.
    """

    reads_epoch = True
    memory: ClassMemory | None

    def __init__(
        self,
        temperature: float = 4.0,
        weight_temperature: float = 100.0,
        ce_weight: float = 1.0,
        margin_weight: float = 8.0,
        soft_weight: float = 1.0,
        class_memory: bool = False,
        warmup_epochs: int = 20,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, weight_temperature=weight_temperature)
        check_positive(warmup_epochs=warmup_epochs)
        check_weights(ce_weight=ce_weight, margin_weight=margin_weight, soft_weight=soft_weight)
        self.temperature, self.weight_temperature = temperature, weight_temperature
        self.ce_weight = ce_weight
        self.margin_weight, self.soft_weight = margin_weight, soft_weight
        self.class_memory = class_memory
        self.memory = None
        self.warmup_epochs = warmup_epochs

    def setup(self, probe: Probe) -> None:
        """The class memory, if there is one."""
        if self.class_memory:
            self.memory = ClassMemory(probe.num_classes)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "margin" and "soft", each [B]."""
        (teacher,) = teachers
        warmup = torch.clamp(batch.epoch / self.warmup_epochs, max=1.0)
        weights = torch.softmax(teacher.logits / self.weight_temperature, dim=1)
        if self.memory is not None:
            weights = self.memory(batch.epoch, batch.labels, weights)
        margin = weighted_margins(teacher.logits - student.logits, weights)
        soft_labels = torch.softmax(teacher.logits / self.temperature, dim=1)
        own = torch.log_softmax(student.logits / self.temperature, dim=1)
        return {
            "ce": self.label_term(batch, student),
            "margin": warmup * self.margin_weight * margin,
            "soft": warmup * self.soft_weight * -(soft_labels * own).sum(dim=1),
        }
