"""Knowledge review (Chen et al., CVPR 2021, arXiv 2104.09044)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.networks.adapters import check_map, paired_maps
from kdbench.types import Batch, Output, Probe

POOLED_SIDES = (4, 2, 1)


def hierarchical_context_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Weighted mean of the squared errors at full size and pooled to 4, 2 and 1, of each sample.

    Only sides below the map's own count; the weights are 1, 1/2, 1/4, 1/8 in that order.
    Shapes: both [B, C, H, W] -> [B]. Source: section 3; the weights are the released code's.
    """
    loss = (student_map - teacher_map).square().mean(dim=(1, 2, 3))
    weight = total = 1.0
    for side in POOLED_SIDES:
        if side < student_map.shape[2]:
            pooled = F.adaptive_avg_pool2d(student_map - teacher_map, side)
            weight /= 2
            total += weight
            loss = loss + weight * pooled.square().mean(dim=(1, 2, 3))
    return loss / total


class Fusion(nn.Module):
    """Attention-based fusion of a student's map with what the deeper levels passed on."""

    def __init__(self, inputs: int, width: int, outputs: int, deepest: bool) -> None:
        super().__init__()
        self.reduce = _conv_bn(inputs, width, 1)
        self.expand = _conv_bn(width, outputs, 3)
        self.attention = None if deepest else nn.Conv2d(2 * width, 2, 1)

    def forward(
        self, feature: Tensor, deeper: Tensor | None, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """[B, inputs, H, W] -> [B, outputs, *size] to compare, [B, width, *size] to pass on."""
        fused = self.reduce(feature)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, fused.shape[2:], mode="nearest")
            weights = self.attention(torch.cat([fused, deeper], dim=1)).sigmoid()  # [B, 2, H, W]
            fused = fused * weights[:, :1] + deeper * weights[:, 1:]
        if fused.shape[2:] != size:
            fused = F.interpolate(fused, size, mode="nearest")
        return self.expand(fused), fused


def _conv_bn(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def _maps(output: Output, taps: list[str]) -> list[Tensor]:
    """Those taps, and the pooled vector as a map of one position."""
    return [*(output.taps[tap] for tap in taps), output.taps["pooled"][:, :, None, None]]


class ReviewKD(Method):
    """L = ce_weight CE + min(epoch / warmup_epochs, 1) reviewkd_weight sum_l HCL(out_l, F^t_l).

    Levels are the shared stages and the pooled vector. From the deepest to the shallowest, the
    student's map is fused with what came from below and compared with the teacher's map before
    its activation (section 3). The fusions are max_channels wide at most, or as wide as
    the student's pooled vector, and trained with the student.

    Departures: epochs count from 1, as in mdistiller (the authors' first epoch has weight 0).
    The teacher is in eval mode (their CIFAR script leaves it in train mode). `max_channels` is
    honoured (mdistiller ignores its own and takes 512); on ImageNet the authors use 256 for
    MobileNetV1, and `student_preactivation`.
    """

    soft_labels = True
    reads_epoch = True
    taps = ("pooled",)

    def __init__(
        self,
        ce_weight: float = 1.0,
        reviewkd_weight: float = 5.0,
        warmup_epochs: int = 20,
        max_channels: int = 512,
        student_preactivation: bool = False,
    ) -> None:
        super().__init__()
        check_weights(ce_weight=ce_weight, reviewkd_weight=reviewkd_weight)
        check_positive(warmup_epochs=warmup_epochs, max_channels=max_channels)
        self.ce_weight = ce_weight
        self.reviewkd_weight = reviewkd_weight
        self.warmup_epochs = warmup_epochs
        self.max_channels = max_channels
        self.student_suffix = "_pre" if student_preactivation else ""

    def setup(self, probe: Probe) -> None:
        """Build a fusion for each shared stage and one for the pooled vector."""
        teacher = probe.teachers[0]
        pairs = paired_maps(probe, self.student_suffix, "_pre")
        self.student_taps, self.teacher_taps = ([*taps] for taps in zip(*pairs, strict=True))
        self.taps, self.own_taps = ("pooled", *self.teacher_taps), tuple(self.student_taps)
        inputs = [check_map(probe.student, tap)[0] for tap in self.student_taps]
        outputs = [check_map(teacher, tap)[0] for tap in self.teacher_taps]
        (pooled,), (wanted,) = probe.student.taps["pooled"], teacher.taps["pooled"]
        width = min(self.max_channels, pooled)
        levels = zip([*inputs, pooled], [*outputs, wanted], strict=True)
        deepest = len(pairs)
        self.fusions = nn.ModuleList(
            Fusion(own, width, theirs, level == deepest)
            for level, (own, theirs) in enumerate(levels)
        )

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "reviewkd" [B]."""
        (teacher,) = teachers
        own, theirs = _maps(student, self.student_taps), _maps(teacher, self.teacher_taps)
        levels = reversed(list(zip(self.fusions, own, theirs, strict=True)))
        deeper, distances = None, []
        for fusion, feature, target in levels:
            compared, deeper = fusion(feature, deeper, target.shape[2:])
            distances.append(hierarchical_context_loss(compared, target))
        warmup = torch.clamp(batch.epoch / self.warmup_epochs, max=1.0)
        return {
            "ce": self.label_term(batch, student),
            "reviewkd": warmup * self.reviewkd_weight * sum(distances),
        }
