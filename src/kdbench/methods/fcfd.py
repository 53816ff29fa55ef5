"""FCFD, function-consistent feature distillation (Liu et al., ICLR 2023)."""

import copy
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import ConfigError
from kdbench.losses import kd_loss, total
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.networks.adapters import bridge, check_map, shared_stages
from kdbench.networks.partial_forward import Tail, is_rectified, resumable
from kdbench.types import Batch, Output, Probe

STUDENT, TEACHER = 0, 1  # the networks


def appearance(features: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """sum_i mean (F_i - F^t_i)^2, at the last stage also of the averages after a ReLU, per sample.

    `features` are maps of the last ones of the stages in `teacher`, in the teacher's space. All are
    before the ReLU. Shapes: [B, C, H, W] each -> [B].
    """
    pairs = list(zip(features, teacher[-len(features) :], strict=True))
    pooled = [F.relu(feature).mean(dim=(2, 3)) for feature in pairs[-1]]
    losses = [(own - theirs).square().mean(dim=(1, 2, 3)) for own, theirs in pairs]
    return total(losses) + (pooled[0] - pooled[1]).square().mean(dim=1)


class FCFD(Method):
    """L = ce_weight CE + kd_weight KD + mixture_weight sum KD of mixed paths + feature_weight w A.

    Bridges, a 3x3 convolution and BN, take the map of each stage into the other network's space. A
    mixed path is one network up to a stage, a bridge, and the other network from there on; its
    logits learn from the teacher's by KL with T^2. A sums squared distances to the teacher's maps
    before the ReLU, of the student's bridged maps and of those that the paths into the teacher go
    through; at the last stage also of the averages. w = min(epoch / warmup_epochs, 1).

    Mixed paths leave no trace in the student's batch norms, and the teacher in them normalises by
    the batch, as released ("frozen" there, but in train mode).

    Departures: the released code draws `drawn_paths` of all mixed paths at each step; here all are
    walked, with the probability of being drawn as their weight. It keeps running statistics of
    every mixed path, which nothing reads in training.
    """

    soft_labels = True
    reads_epoch = True

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        mixture_weight: float = 1.0,
        feature_weight: float = 5.0,
        drawn_paths: int = 2,
        warmup_epochs: int = 20,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, drawn_paths=drawn_paths)
        check_positive(warmup_epochs=warmup_epochs)
        check_weights(ce_weight=ce_weight, kd_weight=kd_weight)
        check_weights(mixture_weight=mixture_weight, feature_weight=feature_weight)
        self.temperature, self.warmup_epochs = temperature, warmup_epochs
        self.ce_weight, self.kd_weight = ce_weight, kd_weight
        self.mixture_weight, self.feature_weight = mixture_weight, feature_weight
        self.drawn_paths = drawn_paths

    def setup(self, probe: Probe) -> None:
        """The bridges of every stage, a teacher of its own, and the way into the student.

        Raises:
            ConfigError: a network cannot be resumed, or there is no mixed path.
        """
        self.stages = shared_stages(probe)
        if len(self.stages) < 2:
            raise ConfigError("student and teacher share one stage: there is no mixed path")
        probes = probe.student, probe.teachers[0]
        student = resumable(probe.student, "student")
        teacher = copy.deepcopy(resumable(probe.teachers[0], "teacher")).requires_grad_(False)
        # Not as modules: the student is trained already, and the teacher never.
        self.tails = (Tail(student), Tail(teacher.train(self.training)))
        image = probe.student.image
        self.rectified = [is_rectified(n, image, self.stages) for n in (student, teacher)]
        self.raw = [[f"{s}_pre" if own else s for s in self.stages] for own in self.rectified]
        self.taps = tuple(tap for stage in self.stages for tap in (stage, f"{stage}_pre"))
        own, theirs = (
            [check_map(network, tap) for tap in raw]
            for network, raw in zip(probes, self.raw, strict=True)
        )
        self.into_teacher = nn.ModuleList(map(bridge, own, theirs))
        self.into_student = nn.ModuleList(map(bridge, theirs[:-1], own[:-1]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """The teacher goes wherever the method goes."""
        self.tails[TEACHER]._apply(fn)  # type: ignore[no-untyped-call]  # torch's own
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own
        return self

    def train(self, mode: bool = True) -> Self:
        """The teacher's batch norms in mixed paths are in the method's mode."""
        self.tails[TEACHER].train(mode)
        return super().train(mode)

    def mixed(self, into: int, stage: int, feature: Tensor) -> Output:
        """Return a network's output on the other one's map after `stage` (from 0)."""
        bridges = self.into_teacher if into == TEACHER else self.into_student
        crossed = bridges[stage](feature)
        entering = F.relu(crossed) if self.rectified[into] else crossed
        return self.tails[into].apart(stage + 1, entering)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "kd", "mixture" and "feature", each [B]."""
        (teacher,) = teachers
        own, theirs = (
            [output.taps[tap] for tap in raw]
            for output, raw in zip((student, teacher), self.raw, strict=True)
        )
        crossed = [cross(feature) for cross, feature in zip(self.into_teacher, own, strict=True)]
        switches = range(len(self.stages) - 1)
        ahead = [self.mixed(TEACHER, stage, own[stage]) for stage in switches]
        back = [self.mixed(STUDENT, stage, theirs[stage]) for stage in switches]
        share = min(1.0, self.drawn_paths / (len(ahead) + len(back)))
        mixture = total(
            kd_loss(path.logits, teacher.logits, self.temperature) for path in (*ahead, *back)
        )
        later = [
            [path.taps[tap] for tap in self.raw[TEACHER][stage + 1 :]]
            for stage, path in enumerate(ahead)
        ]
        distance = appearance(crossed, theirs) + share * total(
            appearance(maps, theirs) for maps in later
        )
        warmup = torch.clamp(batch.epoch / self.warmup_epochs, max=1.0)
        kd = kd_loss(student.logits, teacher.logits, self.temperature)
        return {
            "ce": self.label_term(batch, student),
            "kd": self.kd_weight * kd,
            "mixture": self.mixture_weight * share * mixture,
            "feature": self.feature_weight * warmup * distance,
        }
