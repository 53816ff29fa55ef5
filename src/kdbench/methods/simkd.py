"""SimKD, the reused teacher classifier (Chen et al., CVPR 2022, arXiv 2203.14001)."""

from typing import Literal

from torch import Tensor, nn

from kdbench.methods.base import Method, check_weights
from kdbench.networks.adapters import check_map, last_stage, map_classifier, match_smaller
from kdbench.networks.heads import PROJECTED, ReusedHead, projector
from kdbench.types import Batch, Output, Probe


def map_mse(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """mean_{C, H, W} (P - F^t)^2 of each sample, the larger map pooled to the smaller first.

    Shapes: [B, C, H, W] and [B, C, H', W'] -> [B]. Source: Chen et al. 2022 and its code.
    """
    student_map, teacher_map = match_smaller(student_map, teacher_map)
    return (student_map - teacher_map).square().mean(dim=(1, 2, 3))


class SimKD(Method):
    """L = feature_weight * mean (Proj(F^s) - F^t)^2, z^s = W^t GAP(Proj(F^s)) + b^t.

    F^s is the student's last stage, F^t the map that the teacher's classifier reads the average
    of. The student is trained, evaluated and saved with the projector and the teacher's frozen
    classifier: part of its gain comes from these parameters, 26,240 (factor 8) to 214,016
    (factor 2) for resnet32x4 -> resnet8x4, 11.7 million for ResNet50 -> MobileNetV2.

    Departures: none in the loss; the label term "ce" is there, with weight 0, for a measure of
    it. Parameters of the student that the projector does not read (its classifier, and a last
    convolution beyond the last stage) are buffers here; the released code gives them to the
    optimizer, where they get no gradient. The authors' zoo has other networks under some of these
    names (a ShuffleNetV2 of width 1.5, resnet38x2 for WRN), so not all of their table compares.
    """

    soft_labels = True
    taps = ("map",)

    def __init__(
        self, factor: Literal[2, 4, 8] = 2, ce_weight: float = 0.0, feature_weight: float = 1.0
    ) -> None:
        super().__init__()
        check_weights(ce_weight=ce_weight, feature_weight=feature_weight)
        self.factor = factor
        self.ce_weight = ce_weight
        self.feature_weight = feature_weight

    def adapt(self, student: nn.Module, probe: Probe) -> nn.Module:
        """The student with a projector and the teacher's classifier in place of its own."""
        self.own_taps = (PROJECTED,)
        teacher = probe.teachers[0]
        classifier = map_classifier(teacher, "teacher")
        channels, side, _ = check_map(teacher, "map")
        stage = last_stage(probe.student)
        projection = projector(check_map(probe.student, stage)[0], channels, self.factor)
        return ReusedHead(student, probe.student.image, stage, projection, side, classifier)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" and "feature", each [B]."""
        (teacher,) = teachers
        return {
            "ce": self.label_term(batch, student),
            "feature": self.feature_weight * map_mse(student.taps[PROJECTED], teacher.taps["map"]),
        }
