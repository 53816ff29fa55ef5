"""Class attention transfer (Guo et al., CVPR 2023, arXiv 2304.12777)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.networks.adapters import map_classifier
from kdbench.networks.heads import CLASS_MAP, class_maps, with_class_maps
from kdbench.types import Batch, Output, Probe


def cat_loss(
    student_maps: Tensor, teacher_maps: Tensor, resolution: int, normalise: bool
) -> Tensor:
    """mean_{K, r, r} (phi(pool_r(CAM^s)) - phi(pool_r(CAM^t)))^2 of each sample.

    Shapes: [B, K, H, W] and [B, K, H', W'] -> [B]. phi divides each class's map by its L2 norm,
    or does nothing. Source: Guo et al. 2023 and its code.
    """
    pooled = [F.adaptive_avg_pool2d(maps, resolution) for maps in (student_maps, teacher_maps)]
    if normalise:
        pooled = [F.normalize(maps, dim=(2, 3)) for maps in pooled]  # type: ignore[arg-type]  # it may
    student, teacher = pooled
    return (student - teacher).square().mean(dim=(1, 2, 3))


class CATKD(Method):
    """L = ce_weight CE + cat_weight * MSE of the class activation maps, pooled to r x r.

    A class activation map is the classifier's weight at every position of the last map, so the
    logits are its average and neither network has a bias: the student is trained without one, and
    the teacher's is left out of its maps. The paper's beta is `cat_weight`.

    Departures: the released code replaces the student's linear layer by a 1x1 convolution, which
    computes the same and is initialised as its other convolutions; here the student keeps its
    linear layer and that layer's initial weights, so that methods of one seed start equal, its
    bias is fixed at 0, and what is saved is an ordinary student.
    """

    soft_labels = True
    taps = ("map",)
    teacher_weight: Tensor

    def __init__(
        self,
        resolution: int = 2,
        normalise: bool = False,
        ce_weight: float = 1.0,
        cat_weight: float = 15.0,
    ) -> None:
        super().__init__()
        check_positive(resolution=resolution)
        check_weights(ce_weight=ce_weight, cat_weight=cat_weight)
        self.resolution = resolution
        self.normalise = normalise
        self.ce_weight = ce_weight
        self.cat_weight = cat_weight
        self.register_buffer("teacher_weight", torch.zeros(0))

    def setup(self, probe: Probe) -> None:
        """Keep the weight of the teacher's classifier, [K, D]."""
        self.teacher_weight = map_classifier(probe.teachers[0], "teacher").weight

    def adapt(self, student: nn.Module, probe: Probe) -> nn.Module:
        """The student without a bias in its classifier, and with a tap for its class maps."""
        map_classifier(probe.student, "student")
        self.own_taps = (CLASS_MAP,)
        return with_class_maps(student, bias=False)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" and "cat", each [B]."""
        (teacher,) = teachers
        teacher_maps = class_maps(teacher.taps["map"], self.teacher_weight)
        loss = cat_loss(student.taps[CLASS_MAP], teacher_maps, self.resolution, self.normalise)
        return {"ce": self.label_term(batch, student), "cat": self.cat_weight * loss}
