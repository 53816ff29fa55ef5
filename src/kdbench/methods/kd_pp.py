"""KD++, distillation with norm and direction (Wang et al., ECCV 2024, arXiv 2305.17007)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import ConfigError
from kdbench.losses import kd_loss
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output, Probe


def nd_loss(student: Tensor, teacher: Tensor, directions: Tensor) -> Tensor:
    """1 - <f^s, e_y> / max(||f^s||, ||f^t||) of each sample.

    Shapes: student, teacher and directions [B, D], the directions of length 1 -> [B], between 0
    and 2. Source: Wang et al. 2024, the ND loss.
    """
    along = (student * directions).sum(dim=1)
    longer = torch.maximum(student.norm(dim=1), teacher.norm(dim=1))
    return 1 - along / longer


class KDPlusPlus(Method):
    """L = ce_weight CE + warm-up * kd_weight T^2 KL(p^t(T) || p^s(T)) + nd_weight ND.

    ND asks a student's pooled vector to point where the teacher's vectors of its class point on
    average over the training images, and to be at least as long as the teacher's own. Where the
    widths differ the student's vector goes through BN, dropout and a linear layer first. The
    warm-up is min((epoch - 1) / warmup_epochs, 1): the released code counts epochs from 0, so KD
    has no weight in the first one.

    Departures: class means are taken over the images without augmentation and are not rounded to
    four digits. The released runs use Nesterov momentum at lr 0.1 (0.02 for ShuffleNets), this
    benchmark's schedules have none.
    """

    reads_epoch = True
    taps = ("pooled",)
    directions: Tensor

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        nd_weight: float = 2.0,
        warmup_epochs: int = 20,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, warmup_epochs=warmup_epochs)
        check_weights(ce_weight=ce_weight, kd_weight=kd_weight, nd_weight=nd_weight)
        if not 0 <= dropout < 1:
            raise ConfigError(f"method.dropout must be 0 or more and below 1, not {dropout}")
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.nd_weight = nd_weight
        self.warmup_epochs = warmup_epochs
        self.dropout = dropout
        self.norm: nn.BatchNorm1d | None = None
        self.embed: nn.Linear | None = None
        self.register_buffer("directions", torch.zeros(0))

    def setup(self, probe: Probe) -> None:
        """Each class's direction in the teacher, [K, D], and an embedding where widths differ."""
        teacher = probe.teachers[0]
        assert teacher.class_means is not None
        self.directions = F.normalize(teacher.class_means("pooled"), dim=1)
        (inputs,), (outputs,) = probe.student.taps["pooled"], teacher.taps["pooled"]
        if inputs != outputs:
            self.norm, self.embed = nn.BatchNorm1d(inputs), nn.Linear(inputs, outputs)
            nn.init.zeros_(self.embed.bias)

    def draw(self, batch: Batch, generator: torch.Generator) -> Tensor | None:
        """Draw dropout's factors of the student's vector, [B, D]: 0 or 1 / (1 - dropout)."""
        if self.embed is None:
            return None
        shape = (len(batch.labels), self.embed.in_features)
        kept = torch.rand(shape, generator=generator, device=generator.device) >= self.dropout
        return kept.float() / (1 - self.dropout)

    def embedded(self, batch: Batch, student: Output) -> Tensor:
        """The student's pooled vector in the teacher's width, [B, D]."""
        feature = student.taps["pooled"]
        if self.norm is None or self.embed is None:
            return feature
        feature = self.norm(feature)
        if self.training and batch.drawn is not None:
            feature = feature * batch.drawn
        return self.embed(feature)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "kd" and "nd", each [B]."""
        (teacher,) = teachers
        warmup = torch.clamp((batch.epoch - 1) / self.warmup_epochs, max=1.0)
        distillation = kd_loss(student.logits, teacher.logits, self.temperature)
        nd = nd_loss(
            self.embedded(batch, student), teacher.taps["pooled"], self.directions[batch.labels]
        )
        return {
            "ce": self.label_term(batch, student),
            "kd": warmup * self.kd_weight * distillation,
            "nd": self.nd_weight * nd,
        }
