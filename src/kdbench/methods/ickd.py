"""ICKD-C, inter-channel correlations (Liu et al., ICCV 2021)."""

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.methods.base import Method, check_weights
from kdbench.networks.adapters import check_map
from kdbench.types import Batch, Output, Probe


def channel_relations(feature: Tensor) -> Tensor:
    """F F' of the channels' maps, each row of length 1: [B, C, H, W] -> [B, C, C]."""
    flat = feature.flatten(2)
    return F.normalize(flat @ flat.transpose(1, 2), dim=2)


def ickd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """|R^s - R^t|^2 / C of each sample, R as in `channel_relations`; maps of any two sizes.

    Shapes: [B, C, H, W] each, with one number of channels -> [B].
    """
    difference = channel_relations(student) - channel_relations(teacher)
    return difference.square().sum(dim=(1, 2)) / student.shape[1]


class ICKD(Method):
    """L = ce_weight CE + correlation_weight |R(c(F^s)) - R(F^t)|^2 / C.

    F is the map that the classifier averages, c a 1x1 convolution and BN to the teacher's channels,
    R the channels' products with rows of length 1.

    Departures: the released code embeds the teacher's map too and never uses it.
    """

    soft_labels = True
    taps = ("map",)

    def __init__(self, ce_weight: float = 1.0, correlation_weight: float = 2.5) -> None:
        super().__init__()
        check_weights(ce_weight=ce_weight, correlation_weight=correlation_weight)
        self.ce_weight = ce_weight
        self.correlation_weight = correlation_weight

    def setup(self, probe: Probe) -> None:
        """The projection to the teacher's channels."""
        inputs, outputs = (check_map(n, "map")[0] for n in (probe.student, probe.teachers[0]))
        convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.project = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" and "correlation", each [B]."""
        (teacher,) = teachers
        loss = ickd_loss(self.project(student.taps["map"]), teacher.taps["map"])
        return {
            "ce": self.label_term(batch, student),
            "correlation": self.correlation_weight * loss,
        }
