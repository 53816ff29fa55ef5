"""Confidence-aware multi-teacher distillation (Zhang et al., ICASSP 2022, arXiv 2201.00007)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import ConfigError
from kdbench.losses import ca_weights, kd_losses
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.networks.adapters import MapProjection, check_map
from kdbench.types import Batch, Output, Probe


class CAMKD(Method):
    """L = ce_weight CE + kd_weight / T sum_t w_t T^2 KL_t + feature_weight / T sum_t v_t MSE_t.

    w_t = (1 - softmax_t(CE(z^t, y))) / (T - 1) trusts teachers that know the label. MSE_t is the
    mean squared error between r_t(F^s) and F^t, the maps that the classifiers read the average of;
    r_t resizes, 1x1 convolution, BN, ReLU. v_t is w_t with the logits that teacher t's classifier
    gives on r_t(F^s). There is no feature term in epoch 1. One teacher is KD with a feature term.

    Departures: the released code resizes the student's map in place from teacher to teacher, here
    each starts from the original; it takes a MobileNetV2 student's map before its last 1x1
    convolution, here it is always the map that is averaged. As released, 1/T stands on top of
    normalised weights (`divide_by_k` false: the strength of `aver`), and the gradient of the
    feature term runs through v_t too (`detach_feature_weight` true: it does not).
    """

    reads_epoch = True
    num_teachers = None

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        feature_weight: float = 50.0,
        divide_by_k: bool = True,
        detach_feature_weight: bool = False,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_weights(ce_weight=ce_weight, kd_weight=kd_weight, feature_weight=feature_weight)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.feature_weight = feature_weight
        self.divide_by_k = divide_by_k
        self.detach_feature_weight = detach_feature_weight
        self.taps = ("map",) if feature_weight > 0 else ()

    def setup(self, probe: Probe) -> None:
        """Make a projection and keep the classifier for each teacher."""
        self.projections = nn.ModuleList()
        for number, teacher in enumerate(probe.teachers if self.feature_weight > 0 else ()):
            shape = check_map(teacher, "map")
            if teacher.classifier is None or teacher.classifier.weight.shape[1] != shape[0]:
                raise ConfigError(
                    f"teacher {number} has no linear classifier over its averaged map, which the "
                    "feature term of ca_mkd reads: set method.feature_weight=0"
                )
            self.projections.append(MapProjection(check_map(probe.student, "map"), shape))
            self.register_buffer(f"head{number}_weight", teacher.classifier.weight)
            self.register_buffer(f"head{number}_bias", teacher.classifier.bias)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "kd" and, where it has a weight, "feature", each [B]."""
        logits = [teacher.logits for teacher in teachers]
        weights = ca_weights(logits, batch.labels)
        share = 1 / len(teachers) if self.divide_by_k else 1.0
        loss = (weights * kd_losses(student.logits, logits, self.temperature)).sum(dim=0)
        terms = {"ce": self.label_term(batch, student), "kd": self.kd_weight * share * loss}
        if self.feature_weight > 0:
            weight = self.feature_weight * share * (batch.epoch > 1)
            terms["feature"] = weight * self.feature_loss(batch, student, teachers)
        return terms

    def feature_loss(self, batch: Batch, student: Output, teachers: tuple[Output, ...]) -> Tensor:
        """sum_t v_t MSE_t of each sample, [B]."""
        projected = [projection(student.taps["map"]) for projection in self.projections]
        logits = [
            F.linear(
                feature.mean(dim=(2, 3)),
                getattr(self, f"head{number}_weight"),
                getattr(self, f"head{number}_bias"),
            )
            for number, feature in enumerate(projected)
        ]
        weights = ca_weights(logits, batch.labels)
        errors = [
            (feature - teacher.taps["map"]).square().mean(dim=(1, 2, 3))
            for feature, teacher in zip(projected, teachers, strict=True)
        ]
        weights = weights.detach() if self.detach_feature_weight else weights
        return (weights * torch.stack(errors)).sum(dim=0)
