"""Wasserstein distance between logits (Lv et al., NeurIPS 2024, arXiv 2412.08139)."""

from typing import Literal

from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.methods.wasserstein import LEAST, class_costs, half_cosine, logit_losses
from kdbench.types import Batch, Output, Probe


class WKDL(Method):
    """L = ce_weight CE + target_weight L_t + decay(epoch) transport_weight W (WKD-L).

    L_t = -p^t_y log p^s_y at temperature 1; W is the entropy-regularised Wasserstein distance
    between the two networks' probabilities among the other classes at temperature T, where
    moving between classes costs 1 - exp(-sharpness (1 - similarity)). The gradient flows through
    all Sinkhorn iterations. After `decay_start` the weight of W falls along a half cosine, to 0 at
    `decay_end`: the schedule's last epoch in the released code, to be set with it here.

    The similarity of two classes is the linear CKA between the teacher's pooled features of their
    training images ("cka", as published), or the cosine between two classes' `prototypes`: the
    teacher's "classifier" weights (an option of the released code), or its mean pooled features
    ("class_means", ours, for a teacher without a linear classifier). Until 2026 the default here
    was the classifier's cosine; runs of then say so in their configuration.

    Departures: linear CKA pairs the images of two classes in the data set's order, so it depends
    on that order; where classes differ in size, the first images of each are taken. The Sinkhorn
    iterations have no guard of 1e-8 in their denominators and the costs none of 1e-8 either.
    """

    reads_epoch = True
    costs: Tensor  # [K, K]

    def __init__(
        self,
        temperature: float = 8.0,
        ce_weight: float = 1.0,
        target_weight: float = 1.0,
        transport_weight: float = 800.0,
        prototypes: Literal["cka", "classifier", "class_means"] = "cka",
        sharpness: float = 1.0,
        regularization: float = 0.05,
        iterations: int = 10,
        decay_start: int = 150,
        decay_end: int = 240,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, sharpness=sharpness, iterations=iterations)
        check_weights(
            ce_weight=ce_weight, target_weight=target_weight, transport_weight=transport_weight
        )
        if not LEAST <= regularization < float("inf"):
            raise ConfigError(f"method.regularization must be {LEAST} or more: {regularization}")
        if not 0 <= decay_start < decay_end:
            raise ConfigError(f"method.decay_start={decay_start} must be below {decay_end}")
        self.temperature, self.ce_weight = temperature, ce_weight
        self.target_weight, self.transport_weight = target_weight, transport_weight
        self.prototypes, self.sharpness = prototypes, sharpness
        self.regularization, self.iterations = regularization, iterations
        self.decay_start, self.decay_end = decay_start, decay_end

    def setup(self, probe: Probe) -> None:
        """Compute the costs between the classes from what the teacher makes of them."""
        costs = class_costs(probe.teachers[0], self.prototypes, self.sharpness)
        self.register_buffer("costs", costs)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "target" and "transport", each [B]."""
        (teacher,) = teachers
        settings = self.costs, self.temperature, self.regularization, self.iterations
        target, cost = logit_losses(student.logits, teacher.logits, batch.labels, *settings)
        decay = half_cosine(batch.epoch, self.decay_start, self.decay_end)
        return {
            "ce": self.label_term(batch, student),
            "target": self.target_weight * target,
            "transport": decay * self.transport_weight * cost,
        }
