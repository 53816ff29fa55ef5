"""SemCKD, cross-layer distillation by attention (Chen et al., AAAI 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import ConfigError
from kdbench.losses import kd_loss
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.networks.adapters import check_map, match_smaller, shared_stages
from kdbench.types import Batch, Output, Probe

Pairs = Sequence[Sequence[tuple[Tensor, Tensor]]]  # S x T maps [B, ...] of student and teacher


class RelationEncoder(nn.Module):
    """A vector of length 1 for each sample, from its products with the others of the batch."""

    def __init__(self, batch_size: int, width: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.first = nn.Linear(batch_size, 2 * width)
        self.second = nn.Linear(2 * width, width)

    def forward(self, feature: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, width]; products with images that a smaller batch lacks are 0."""
        flat = feature.flatten(1)
        products = F.pad(flat @ flat.T, (0, self.batch_size - len(flat)))
        encoded = self.second(F.relu(self.first(products)))
        return F.normalize(encoded, dim=1)


def attention_of(queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
    """softmax over the teacher's layers of query . key: S and T of [B, h] -> [B, S, T]."""
    query, key = torch.stack(list(queries), dim=1), torch.stack(list(keys), dim=1)
    return torch.softmax(query @ key.transpose(1, 2), dim=2)


def attended_distance(attention: Tensor, pairs: Pairs) -> Tensor:
    """mean over samples and student layers of sum_j attention_ij mean (s_ij - t_ij)^2.

    Shapes: attention [B, S, T], S x T pairs of maps [B, ...] -> [].
    """
    errors = [[(s - t).square().flatten(1).mean(dim=1) for s, t in row] for row in pairs]
    distances = torch.stack([torch.stack(row, dim=1) for row in errors], dim=1)
    return (attention * distances).sum() / (attention.shape[0] * attention.shape[1])


def regressor(inputs: int, outputs: int) -> nn.Sequential:
    """1x1, 3x3 and 1x1 convolutions over twice the teacher's channels, BN and ReLU between."""
    width = 2 * outputs
    return nn.Sequential(
        nn.Conv2d(inputs, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, outputs, 1, bias=False),
    )


class SemCKD(Method):
    """L = ce_weight CE + kd_weight KD + match_weight sum_ij a_bij MSE(r_ij(F^s_i), F^t_j).

    Every stage i of the student learns from every stage j of the teacher by an attention a, a
    softmax over j of query . key; both come from the products of a sample's map with those of the
    batch, whose size is part of the method; "match" [] is a mean. The larger map is pooled.

    Departures: the released code drops an epoch's last, short batch; here products with images
    that a batch lacks are 0. Stages are those that both networks have.
    """

    soft_labels = True
    batch_terms = ("match",)

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        match_weight: float = 400.0,
        batch_size: int = 64,
        factor: int = 4,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, factor=factor)
        check_weights(ce_weight=ce_weight, kd_weight=kd_weight, match_weight=match_weight)
        if batch_size < factor:
            raise ConfigError(f"method.batch_size={batch_size} must be {factor} (factor) or more")
        self.temperature, self.ce_weight = temperature, ce_weight
        self.kd_weight, self.match_weight = kd_weight, match_weight
        self.batch_size, self.width = batch_size, batch_size // factor

    def setup(self, probe: Probe) -> None:
        """Encoders of every stage, and a regressor for every pair of them."""
        self.taps = tuple(shared_stages(probe))
        student, teacher = (
            [check_map(network, tap)[0] for tap in self.taps]
            for network in (probe.student, probe.teachers[0])
        )
        self.build(student, teacher)

    def build(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        """For maps of so many channels."""
        self.queries, self.keys = (
            nn.ModuleList(RelationEncoder(self.batch_size, self.width) for _ in channels)
            for channels in (student, teacher)
        )
        self.regressors = nn.ModuleList(
            nn.ModuleList(regressor(inputs, outputs) for outputs in teacher) for inputs in student
        )

    def attention(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Compare maps of the two networks, [B, S, T].

        Raises:
            ConfigError: the batch is larger than the encoders.
        """
        if len(student[0]) > self.batch_size:
            raise ConfigError(
                f"method.batch_size={self.batch_size} is less than a batch of {len(student[0])}: "
                "set it to schedule.batch_size"
            )
        queries = [encode(feature) for encode, feature in zip(self.queries, student, strict=True)]
        keys = [encode(feature) for encode, feature in zip(self.keys, teacher, strict=True)]
        return attention_of(queries, keys)

    def match(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The attended distance of maps of the two networks, []."""
        rows = []
        for own, row in zip(student, self.regressors, strict=True):
            assert isinstance(row, nn.ModuleList)
            sized = [match_smaller(own, theirs) for theirs in teacher]
            rows.append([(r(s), t) for r, (s, t) in zip(row, sized, strict=True)])
        return attended_distance(self.attention(student, teacher), rows)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B], "kd" [B] and "match" []."""
        (teacher,) = teachers
        own, theirs = ([output.taps[tap] for tap in self.taps] for output in (student, teacher))
        return {
            "ce": self.label_term(batch, student),
            "kd": self.kd_weight * kd_loss(student.logits, teacher.logits, self.temperature),
            "match": self.match_weight * self.match(own, theirs),
        }
