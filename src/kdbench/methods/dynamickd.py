"""DynamicKD, reconstructed (Zhu et al., Pattern Recognition 2024, arXiv 2305.05233)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdbench.errors import ConfigError
from kdbench.losses import entropy, kl_divergence
from kdbench.methods.base import Method, Terms, check_positive, check_weights
from kdbench.methods.logit_scale import (
    Factor,
    Parametrisation,
    factor_of,
    optimal_scale,
    scale_curves,
    scale_of,
    steer,
    theta_of,
)
from kdbench.types import Batch, Output, Probe


class DynamicKD(Method):
    """L = ce_weight CE(z) + kd_weight T^2 KL(softmax(v / T) || softmax(e z / T)), e learned.

    The entropy controller e scales the student's logits z in the distillation term and follows that
    term's gradient, T (E_q[z] - E_p[z]) as a batch mean, by the student's own SGD; evaluation reads
    z alone. Sourced are two abstracts, and a summary that calls the controller a learnable scale of
    the student's logits. Every other reading that changes results is an option:

    - shape: one e, one per class (which can change the ranking), or each sample's best, a constant
    - parametrisation: e, exp(theta), softplus(theta), or the student's temperature T_s = T / e
    - label_logits: CE on z, on e z, or on e z without a gradient to e
    - direction: descend, ascend (as CTKD does), or frozen at `initial`
    - outer_factor: T^2 (t2), T T_s (t_ts), T_s^2 (ts2), 1 (one); divide_by_e: by e as a constant
    - entropy_penalty: adds this weight times |H(q) - H(p)|; frozen, it needs no controller
    - standardise_teacher: divides each v by its standard deviation over the classes (n - 1)
    - lr_multiplier and weight_decay of the controller; its bounds, which hold after each step

    Departures: unknown, as there is no code. Left out are the alternating update of student and
    controller (the step has one backward pass), a controller network per sample (no source says
    what it reads), a start fitted on the first batch (a sample's term would read other samples)
    and an e without bounds (below 0 it turns the student's ranking round).
    """

    soft_labels = True

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
        shape: Literal["scalar", "per_class", "per_sample"] = "scalar",
        parametrisation: Parametrisation = "scale",
        direction: Literal["descend", "ascend", "frozen"] = "descend",
        initial: float = 1.0,
        lowest: float = 0.01,
        highest: float = 100.0,
        lr_multiplier: float = 1.0,
        weight_decay: float = 0.0,
        label_logits: Literal["raw", "corrected", "corrected_detached"] = "raw",
        outer_factor: Factor = "t2",
        divide_by_e: bool = False,
        entropy_penalty: float = 0.0,
        standardise_teacher: bool = False,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, lr_multiplier=lr_multiplier)
        check_positive(lowest=lowest, highest=highest)
        check_weights(ce_weight=ce_weight, kd_weight=kd_weight, weight_decay=weight_decay)
        check_weights(entropy_penalty=entropy_penalty)
        if not lowest <= initial <= highest:
            raise ConfigError(f"method.initial must be in [{lowest}, {highest}], not {initial}")
        if shape == "per_sample" and direction != "descend":
            raise ConfigError("method.shape=per_sample minimises: set method.direction=descend")
        if shape == "per_class" and (divide_by_e or outer_factor in ("t_ts", "ts2")):
            raise ConfigError("method.shape=per_class needs outer_factor t2 or one, undivided")
        self.temperature, self.ce_weight, self.kd_weight = temperature, ce_weight, kd_weight
        self.shape, self.parametrisation, self.direction = shape, parametrisation, direction
        self.initial, self.lowest, self.highest = initial, lowest, highest
        self.lr_multiplier, self.weight_decay = lr_multiplier, weight_decay
        self.outer_factor, self.divide_by_e = outer_factor, divide_by_e
        self.label_logits, self.entropy_penalty = label_logits, entropy_penalty
        self.standardise_teacher = standardise_teacher
        self.bounds = sorted(theta_of(e, parametrisation, temperature) for e in (lowest, highest))

    def setup(self, probe: Probe) -> None:
        """Make the controller: theta, [] or [K]; a buffer where it is frozen."""
        if self.shape == "per_sample":
            return
        size = (probe.num_classes,) if self.shape == "per_class" else ()
        theta = torch.full(size, theta_of(self.initial, self.parametrisation, self.temperature))
        if self.direction == "frozen":
            self.register_buffer("theta", theta)
        else:
            self.theta = nn.Parameter(theta)

    def param_groups(self) -> list[dict[str, Any]]:
        """Theta with its own weight decay, at the student's learning rate; see `steer`."""
        decay = self.lr_multiplier * self.weight_decay
        return [{**group, "weight_decay": decay} for group in super().param_groups()]

    def scale(self, z: Tensor, v: Tensor, bound: bool = False) -> Tensor:
        """The controller e: [], [K] or [B, 1]; `bound`: its bounds hold, as after the last step."""
        if self.shape == "per_sample":
            return optimal_scale(z, v, self.temperature, self.lowest, self.highest)
        if bound and self.direction != "frozen":
            with torch.no_grad():
                self.theta.clamp_(*self.bounds)
        factor = self.lr_multiplier * (-1.0 if self.direction == "ascend" else 1.0)
        return scale_of(steer(self.theta, factor), self.parametrisation, self.temperature)

    def standard(self, logits: Tensor) -> Tensor:
        """The teacher's logits as the distillation term reads them, [B, K]."""
        return logits / (logits.std(dim=1, keepdim=True) if self.standardise_teacher else 1.0)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...], e: Tensor | None = None
    ) -> Terms:
        """Terms "ce" and "kd" [B], and "entropy" [B] where there is a penalty; `e` if at hand."""
        z, v = student.logits, self.standard(teachers[0].logits)
        scale = self.scale(z, v, bound=True) if e is None else e
        corrected = scale * z
        log_q = torch.log_softmax(corrected / self.temperature, dim=1)
        log_p = torch.log_softmax(v / self.temperature, dim=1)
        labelled = {"raw": z, "corrected": corrected, "corrected_detached": scale.detach() * z}
        factor = factor_of(scale, self.temperature, self.outer_factor, self.divide_by_e)
        terms = {
            "ce": self.label_term(batch, student._replace(logits=labelled[self.label_logits])),
            "kd": self.kd_weight * factor * kl_divergence(log_p, log_q),
        }
        if self.entropy_penalty > 0:
            gap = entropy(corrected, self.temperature) - entropy(v, self.temperature)
            terms["entropy"] = self.entropy_penalty * gap.abs()
        return terms

    def observe(self, batch: Batch, student: Output, teachers: tuple[Output, ...]) -> Terms:
        """Return `kdbench.methods.logit_scale.scale_curves`."""
        z, v = student.logits, self.standard(teachers[0].logits)
        return scale_curves(self.scale(z, v), z, teachers[0].logits, v, self.temperature)

    def terms_and_curves(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> tuple[Terms, Terms]:
        """Return `forward` and `observe` from one controller."""
        z, v = student.logits, self.standard(teachers[0].logits)
        scale = self.scale(z, v, bound=True)
        curves = scale_curves(scale, z, teachers[0].logits, v, self.temperature)
        return self.forward(batch, student, teachers, scale), curves
