"""Wasserstein distance between features (Lv et al., NeurIPS 2024, arXiv 2412.08139)."""

from typing import Literal

from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.methods.wasserstein import half_cosine, moment_distance, moment_projector
from kdbench.types import Batch, Output, Probe


class WKDF(Method):
    """L = ce_weight CE + decay(epoch) feature_weight L_F (WKD-F).

    L_F = mean over the cells of a grid of [mean_weight |mu_s - mu_t|^2 + |dev_s - dev_t|^2], mu a
    channel's mean in a cell and dev = sqrt(unbiased variance + eps), between the map at `tap` of
    the teacher and the student's, projected. After `decay_start` the weight falls along a half
    cosine, to 0 at `decay_end`: the schedule's last epoch in the released code, to be set with it
    here. `projector` is a convolution that matches the sizes or a bottleneck of 256 channels.

    Departures: the map is the one that the classifier averages; the released code takes the last
    stage's, which differs where more follows it (wrn's BN and ReLU, a last 1x1 convolution). A
    cell of one pixel has no variance (the released code gives NaN): refused.
    """

    soft_labels = True
    reads_epoch = True

    def __init__(
        self,
        tap: str = "map",
        ce_weight: float = 1.0,
        feature_weight: float = 0.08,
        mean_weight: float = 4.0,
        grid: int = 1,
        projector: Literal["conv1x1", "bottleneck"] = "conv1x1",
        eps: float = 1e-5,
        decay_start: int = 150,
        decay_end: int = 240,
    ) -> None:
        super().__init__()
        check_positive(grid=grid, eps=eps)
        check_weights(ce_weight=ce_weight, feature_weight=feature_weight, mean_weight=mean_weight)
        if not 0 <= decay_start < decay_end:
            raise ConfigError(f"method.decay_start={decay_start} must be below {decay_end}")
        self.tap, self.taps = tap, (tap,)
        self.ce_weight, self.feature_weight = ce_weight, feature_weight
        self.mean_weight, self.grid, self.eps = mean_weight, grid, eps
        self.projector = projector
        self.decay_start, self.decay_end = decay_start, decay_end

    def setup(self, probe: Probe) -> None:
        """The projector of the student's map.

        Raises:
            ConfigError: the grid has cells of one pixel, or no projector fits.
        """
        self.project = moment_projector(probe, self.tap, self.projector, self.grid)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" and "feature", each [B]."""
        (teacher,) = teachers
        settings = self.grid, self.mean_weight, self.eps
        projected = self.project(student.taps[self.tap])
        distance = moment_distance(projected, teacher.taps[self.tap], *settings)
        decay = half_cosine(batch.epoch, self.decay_start, self.decay_end)
        return {
            "ce": self.label_term(batch, student),
            "feature": decay * self.feature_weight * distance,
        }
