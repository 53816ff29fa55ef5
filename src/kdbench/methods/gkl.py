"""GKL, the generalised KL of the decoupled divergence (TPAMI 2026, arXiv 2503.08038)."""

import torch
from torch import Tensor

from kdbench.losses import weighted_margins
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.methods.class_memory import ClassMemory
from kdbench.types import Batch, Output, Probe


class GKL(Method):
    """IKL with weights raised to a power and divided by their sum over the batch.

    L = ce_weight CE + warm-up (margin_weight M + soft_weight H(p^t(T), p^s(T))), no T^2, where M =
    sum_b sum_jk c_j c_k (d_j - d_k)^2 / 4 over sum_b sum_jk c_j c_k, with d = z^t - z^s and c the
    distribution to the power gamma: that of the sample's class over the previous epoch
    (`class_memory`, uniform in the first), or softmax(z^t / weight_temperature). The division
    couples the batch, so "margin" is one scalar.

    Departures: the sum over K x K pairs is computed as a variance under c, which is equal.
    """

    reads_epoch = True
    batch_terms = ("margin",)
    memory: ClassMemory | None

    def __init__(
        self,
        temperature: float = 4.0,
        weight_temperature: float = 4.0,
        ce_weight: float = 1.0,
        margin_weight: float = 16.0,
        soft_weight: float = 1.0,
        gamma: float = 0.05,
        class_memory: bool = True,
        warmup_epochs: int = 20,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, weight_temperature=weight_temperature)
        check_positive(warmup_epochs=warmup_epochs)
        check_weights(ce_weight=ce_weight, margin_weight=margin_weight, soft_weight=soft_weight)
        check_weights(gamma=gamma)
        self.temperature, self.weight_temperature = temperature, weight_temperature
        self.ce_weight = ce_weight
        self.margin_weight, self.soft_weight = margin_weight, soft_weight
        self.gamma = gamma
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
        """Terms "ce" [B], "margin" [] and "soft" [B]."""
        (teacher,) = teachers
        warmup = torch.clamp(batch.epoch / self.warmup_epochs, max=1.0)
        weights = torch.softmax(teacher.logits / self.weight_temperature, dim=1)
        if self.memory is not None:
            weights = self.memory(batch.epoch, batch.labels, weights)
        powers = weights**self.gamma
        margins = weighted_margins(teacher.logits - student.logits, powers)
        margin = margins.sum() / powers.sum(dim=1).square().sum()
        soft_labels = torch.softmax(teacher.logits / self.temperature, dim=1)
        own = torch.log_softmax(student.logits / self.temperature, dim=1)
        return {
            "ce": self.label_term(batch, student),
            "margin": warmup * self.margin_weight * margin,
            "soft": warmup * self.soft_weight * -(soft_labels * own).sum(dim=1),
        }
