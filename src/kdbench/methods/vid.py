"""Variational information distillation (Ahn et al., CVPR 2019, arXiv 1904.05835)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import ConfigError
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.networks.adapters import check_map, match_smaller, paired_maps
from kdbench.types import Batch, Output, Probe


def gaussian_nll(target: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """mean_{C,H,W} [(t - mu)^2 / sigma^2 + log sigma^2] / 2 of each sample, without log(2 pi) / 2.

    Shapes: target and mean [B, C, H, W], variance [C] -> [B]. Source: Ahn et al. 2019, section 3.
    """
    variance = variance[:, None, None]
    return 0.5 * ((target - mean).square() / variance + variance.log()).mean(dim=(1, 2, 3))


class Gaussian(nn.Module):
    """q(F^t | F^s): the mean by three 1x1 convolutions, a variance for each teacher channel."""

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        initial_variance: float,
        min_variance: float,
        train_variance: bool,
    ) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        self.min_variance = min_variance
        start = math.log(math.expm1(initial_variance - min_variance))  # softplus undone
        raw = torch.full((teacher_channels,), start)
        if train_variance:
            self.raw_variance = nn.Parameter(raw)
        else:
            self.register_buffer("raw_variance", raw)

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """Negative log-likelihood of the teacher's map, [B]; the larger map is pooled first."""
        student_map, teacher_map = match_smaller(student_map, teacher_map)
        variance = F.softplus(self.raw_variance) + self.min_variance
        return gaussian_nll(teacher_map, self.mean(student_map), variance)


class VID(Method):
    """L = ce_weight CE + vid_weight sum_l mean [(F^t_l - mu_l)^2 / sigma_l^2 + log sigma_l^2] / 2.

    mu_l = r_l(F^s_l), sigma^2 = softplus(rho) + min_variance for each teacher channel; r_l and rho
    are trained with the student, weight decay included. The term may be negative (section 3).

    Departures: RepDistiller's form, which has no term on the logits (the paper's has one) and
    regressors without BN. mdistiller leaves rho out of its optimizer, so that its term is MSE / 10
    and a constant: `train_variance=false` replays that.
    """

    soft_labels = True

    def __init__(
        self,
        ce_weight: float = 1.0,
        vid_weight: float = 1.0,
        initial_variance: float = 5.0,
        min_variance: float = 1e-5,
        train_variance: bool = True,
    ) -> None:
        super().__init__()
        check_weights(ce_weight=ce_weight, vid_weight=vid_weight)
        check_positive(initial_variance=initial_variance, min_variance=min_variance)
        if initial_variance <= min_variance:
            raise ConfigError(
                f"method.initial_variance must be above min_variance={min_variance}, "
                f"not {initial_variance}"
            )
        self.ce_weight = ce_weight
        self.vid_weight = vid_weight
        self.initial_variance = initial_variance
        self.min_variance = min_variance
        self.train_variance = train_variance

    def setup(self, probe: Probe) -> None:
        """Build a Gaussian for each stage that both networks have."""
        self.pairs = paired_maps(probe)
        self.taps = tuple(theirs for _, theirs in self.pairs)
        self.gaussians = nn.ModuleList(
            Gaussian(
                check_map(probe.student, own)[0],
                check_map(probe.teachers[0], theirs)[0],
                self.initial_variance,
                self.min_variance,
                self.train_variance,
            )
            for own, theirs in self.pairs
        )

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "vid" [B]."""
        (teacher,) = teachers
        stages = zip(self.gaussians, self.pairs, strict=True)
        surprise = sum(
            gaussian(student.taps[own], teacher.taps[theirs]) for gaussian, (own, theirs) in stages
        )
        return {"ce": self.label_term(batch, student), "vid": self.vid_weight * surprise}
