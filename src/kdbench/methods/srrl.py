"""SRRL, softmax regression representation learning (Yang et al., ICLR 2021)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.methods.base import Method, check_weights
from kdbench.networks.adapters import check_map, conv_bn_relu, map_classifier
from kdbench.types import Batch, Output, Probe


class SRRL(Method):
    """L = ce_weight CE + feature_weight FM + logit_weight SR.

    FM = mean_D (GAP(c(F^s)) - GAP(F^t))^2 and SR = mean_K (W^t GAP(c(F^s)) + b^t - z^t)^2, with c
    a 1x1 convolution without bias, BN and ReLU, and F the map that the classifier reads the
    average of. The usual names of the weights: alpha is `feature_weight`, beta `logit_weight`.

    Departures: none known. As in the authors' code c reads the map; SimKD's re-implementation
    gives it the pooled vector, trains with KD beside it, and reports 75.39 for
    resnet32x4 -> resnet8x4 that way.
    """

    soft_labels = True
    taps = ("map", "pooled")
    teacher_weight: Tensor
    teacher_bias: Tensor

    def __init__(
        self, ce_weight: float = 1.0, feature_weight: float = 1.0, logit_weight: float = 1.0
    ) -> None:
        super().__init__()
        check_weights(ce_weight=ce_weight, feature_weight=feature_weight, logit_weight=logit_weight)
        self.ce_weight = ce_weight
        self.feature_weight = feature_weight
        self.logit_weight = logit_weight
        self.register_buffer("teacher_weight", torch.zeros(0))
        self.register_buffer("teacher_bias", torch.zeros(0))

    def setup(self, probe: Probe) -> None:
        """The connector c, and the teacher's classifier."""
        self.teacher_weight, self.teacher_bias = map_classifier(probe.teachers[0], "teacher")
        inputs = check_map(probe.student, "map")[0]
        self.connector = conv_bn_relu(inputs, self.teacher_weight.shape[1])
        convolution = self.connector[0]
        assert isinstance(convolution, nn.Conv2d)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "feature" and "logit", each [B]."""
        (teacher,) = teachers
        connected = self.connector(student.taps["map"]).mean(dim=(2, 3))
        logits = F.linear(connected, self.teacher_weight, self.teacher_bias)
        feature = (connected - teacher.taps["pooled"]).square().mean(dim=1)
        logit = (logits - teacher.logits).square().mean(dim=1)
        return {
            "ce": self.label_term(batch, student),
            "feature": self.feature_weight * feature,
            "logit": self.logit_weight * logit,
        }
