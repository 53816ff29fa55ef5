"""SRD, the role of the projector (Miles & Mikolajczyk, AAAI 2024, arXiv 2303.11098)."""

import torch
from torch import Tensor, nn

from kdbench.losses import kd_loss
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output, Probe

EPS = 1e-4  # of the released code's batch norms


def standardised(features: Tensor) -> Tensor:
    """(f - mean) / sqrt(var + EPS) over the batch: BN while training, without weight and bias.

    Shapes: [B, D] -> [B, D].
    """
    variance, mean = torch.var_mean(features, dim=0, correction=0)
    return (features - mean) * torch.rsqrt(variance + EPS)


def log_sum_distance(student: Tensor, teacher: Tensor, exponent: float) -> Tensor:
    """log sum_{b, d} |s_bd - t_bd|^exponent of the standardised features.

    Shapes: both [B, D] -> []. Unbounded below; B and D add log(B D). Source: Miles & Mikolajczyk
    2024, the LogSum distance.
    """
    difference = (standardised(student) - standardised(teacher)).abs()
    return difference.pow(exponent).sum().log()


class SRD(Method):
    """L = ce_weight CE + kd_weight T^2 KL(p^t(T) || p^s(T)) + feature_weight log sum |s - t|^4.

    s is a linear projection of the student's pooled vector, t the teacher's pooled vector, both
    standardised over the batch without a learnt scale.

    Departures: none in the loss. The released code averages the last stage; that is the pooled
    vector in its ResNets, and here it is so in every network.
    """

    soft_labels = True
    taps = ("pooled",)
    batch_terms = ("feature",)

    def __init__(
        self,
        temperature: float = 1.0,
        exponent: float = 4.0,
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        feature_weight: float = 2.0,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, exponent=exponent)
        check_weights(ce_weight=ce_weight, kd_weight=kd_weight, feature_weight=feature_weight)
        self.temperature = temperature
        self.exponent = exponent
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.feature_weight = feature_weight

    def setup(self, probe: Probe) -> None:
        """The projector, from the student's width to the teacher's."""
        (inputs,), (outputs,) = probe.student.taps["pooled"], probe.teachers[0].taps["pooled"]
        self.projector = nn.Linear(inputs, outputs)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" and "kd", each [B], and "feature" []."""
        (teacher,) = teachers
        distance = log_sum_distance(
            self.projector(student.taps["pooled"]), teacher.taps["pooled"], self.exponent
        )
        distillation = kd_loss(student.logits, teacher.logits, self.temperature)
        return {
            "ce": self.label_term(batch, student),
            "kd": self.kd_weight * distillation,
            "feature": self.feature_weight * distance,
        }
