"""OFA-KD, one for all architectures (NeurIPS 2023, arXiv 2310.19444)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import ConfigError
from kdbench.losses import total
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.networks.exit_heads import TokenHead, exit_head
from kdbench.types import Batch, Output, Probe


def ofa_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    exponent: float,
) -> Tensor:
    """-sum_k [(p^t_k + 1[k = y])^exponent - 1[k = y]] log p^s_k of each sample, no T^2.

    Shapes: logits [B, K], labels [B] -> [B]. With exponent 1 it is H(p^t, p^s), that is KL and a
    constant; above 1 the label's share grows with what the teacher thinks of it.
    """
    teacher = torch.softmax(teacher_logits / temperature, dim=1)
    label = F.one_hot(labels, teacher.shape[1]).to(teacher.dtype)
    own = torch.log_softmax(student_logits / temperature, dim=1)
    return -(((teacher + label) ** exponent - label) * own).sum(dim=1)


class OFA(Method):
    """L = ce_weight CE + ofa_weight OFA(z) + exit_weight sum_i OFA(z_i), of any two architectures.

    z_i are the logits of exit heads, which are trained with the student and dropped after it, at
    `stages` of the student (`networks/exit_heads.py`); the teacher gives its logits alone. Of an
    image that mixup or CutMix has mixed, the label of OFA's terms is that of the larger part, as in
    the released code.

    Departures: exit heads over tokens read the average of the grid and not a class token. Without
    `stages` it is the logit part alone.
    """

    soft_labels = True

    def __init__(
        self,
        temperature: float = 1.0,
        ce_weight: float = 1.0,
        ofa_weight: float = 1.0,
        exponent: float = 1.0,
        stages: tuple[int, ...] = (),
        exit_weight: float = 1.0,
        tokens: bool = False,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, exponent=exponent)
        check_weights(ce_weight=ce_weight, ofa_weight=ofa_weight, exit_weight=exit_weight)
        if list(stages) != sorted(set(stages)) or not set(stages) <= {1, 2, 3, 4}:
            raise ConfigError(f"method.stages must rise from 1 to 4 at most, not {list(stages)}")
        self.temperature, self.exponent = temperature, exponent
        self.ce_weight, self.ofa_weight = ce_weight, ofa_weight
        self.stages, self.exit_weight, self.tokens = tuple(stages), exit_weight, tokens
        self.own_taps = tuple(f"stage{stage}" for stage in stages)
        self.heads = nn.ModuleDict()

    def setup(self, probe: Probe) -> None:
        """Exit heads, as wide as the wider one of student and teacher."""
        widths = [network.taps["pooled"][0] for network in (probe.student, *probe.teachers)]
        for stage in self.stages:
            channels, side, *_ = probe.student.taps[f"stage{stage}"]
            self.heads[str(stage)] = (
                TokenHead(channels, side, stage, widths[0], probe.num_classes)
                if self.tokens
                else exit_head(channels, stage, max(widths), probe.num_classes)
            )

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "ofa" and, with exit heads, "exits", each [B]."""
        (teacher,) = teachers
        settings = teacher.logits, batch.labels, self.temperature, self.exponent
        terms = {
            "ce": self.label_term(batch, student),
            "ofa": self.ofa_weight * ofa_loss(student.logits, *settings),
        }
        if self.stages:
            exits = (head(student.taps[f"stage{stage}"]) for stage, head in self.heads.items())
            terms["exits"] = self.exit_weight * total(ofa_loss(z, *settings) for z in exits)
        return terms
