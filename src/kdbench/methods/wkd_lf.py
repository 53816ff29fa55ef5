"""Wasserstein distances between logits and features (Lv et al., NeurIPS 2024, arXiv 2412.08139)."""

from typing import Literal

from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.methods.wasserstein import (
    LEAST,
    class_costs,
    half_cosine,
    logit_losses,
    moment_distance,
    moment_projector,
)
from kdbench.types import Batch, Output, Probe


class WKDLF(Method):
    """L = ce_weight CE + target_weight L_t + decay(epoch) (transport_weight W + feature_weight F).

    The terms of `wkd_l` and of `wkd_f`, with weights of their own; what is said there of decay,
    similarities, map and projector holds here.

    Departures: as of `wkd_l` and `wkd_f`.
    """

    reads_epoch = True
    costs: Tensor  # [K, K]

    def __init__(
        self,
        tap: str = "map",
        temperature: float = 8.0,
        ce_weight: float = 1.0,
        target_weight: float = 1.0,
        transport_weight: float = 200.0,
        prototypes: Literal["cka", "classifier", "class_means"] = "cka",
        sharpness: float = 1.0,
        regularization: float = 0.05,
        iterations: int = 10,
        feature_weight: float = 0.08,
        mean_weight: float = 8.0,
        grid: int = 1,
        projector: Literal["conv1x1", "bottleneck"] = "conv1x1",
        eps: float = 1e-5,
        decay_start: int = 150,
        decay_end: int = 240,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, sharpness=sharpness, iterations=iterations)
        check_positive(grid=grid, eps=eps)
        check_weights(ce_weight=ce_weight, target_weight=target_weight, mean_weight=mean_weight)
        check_weights(transport_weight=transport_weight, feature_weight=feature_weight)
        if not LEAST <= regularization < float("inf"):
            raise ConfigError(f"method.regularization must be {LEAST} or more: {regularization}")
        if not 0 <= decay_start < decay_end:
            raise ConfigError(f"method.decay_start={decay_start} must be below {decay_end}")
        self.tap, self.taps = tap, (tap,)
        self.temperature, self.ce_weight = temperature, ce_weight
        self.target_weight, self.transport_weight = target_weight, transport_weight
        self.prototypes, self.sharpness = prototypes, sharpness
        self.regularization, self.iterations = regularization, iterations
        self.feature_weight, self.mean_weight = feature_weight, mean_weight
        self.grid, self.projector, self.eps = grid, projector, eps
        self.decay_start, self.decay_end = decay_start, decay_end

    def setup(self, probe: Probe) -> None:
        """The costs between the classes, and the projector of the student's map.

        Raises:
            ConfigError: the teacher cannot give the costs, or no projector fits.
        """
        costs = class_costs(probe.teachers[0], self.prototypes, self.sharpness)
        self.register_buffer("costs", costs)
        self.project = moment_projector(probe, self.tap, self.projector, self.grid)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "target", "transport" and "feature", each [B]."""
        (teacher,) = teachers
        settings = self.costs, self.temperature, self.regularization, self.iterations
        target, cost = logit_losses(student.logits, teacher.logits, batch.labels, *settings)
        projected = self.project(student.taps[self.tap])
        cells = self.grid, self.mean_weight, self.eps
        distance = moment_distance(projected, teacher.taps[self.tap], *cells)
        decay = half_cosine(batch.epoch, self.decay_start, self.decay_end)
        return {
            "ce": self.label_term(batch, student),
            "target": self.target_weight * target,
            "transport": decay * self.transport_weight * cost,
            "feature": decay * self.feature_weight * distance,
        }
