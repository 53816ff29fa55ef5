"""Contrastive representation distillation (Tian, Krishnan & Isola, ICLR 2020, arXiv 1910.10699)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import ConfigError
from kdbench.losses import kd_loss
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output, Probe

EPS = 1e-7  # of the released code; part of what was published


def nce_loss(scores: Tensor, num_samples: int, eps: float = EPS) -> Tensor:
    """-log(h_0 / (h_0 + M/N + eps)) - sum_{j>0} log((M/N) / (h_j + M/N + eps)) of each sample.

    Shapes: scores h [B, 1 + M], exp(similarity / temperature) / Z with the positive first -> [B].
    N is `num_samples`, the size of the training set. Source: equation 18 of the paper's code.
    """
    noise = (scores.shape[1] - 1) / num_samples
    positive, negatives = scores[:, 0], scores[:, 1:]
    return torch.log1p((noise + eps) / positive) + torch.log1p((negatives + eps) / noise).sum(dim=1)


class CRD(Method):
    """L = ce_weight CE + crd_weight (l^s + l^t) [+ kd_weight KD], l as in `nce_loss`.

    v = normalise(W f + b) embeds each network's pooled features; two banks hold each training
    sample's last embeddings. l^s contrasts v^s with the teacher's bank, l^t v^t with the student's:
    the sample's own entry against M of other classes. Z = N mean(exp(.)) of the first batch, then
    constant. After the loss, M_i <- normalise(momentum M_i + (1 - momentum) v_i).

    Departures: the released code draws every sample's negatives on the host. Here a step draws one
    random set of M positions, and each sample reads it at its own random cyclic shift within the
    samples of other classes: where classes are equally large a sample's negatives have the same
    distribution (uniform, without repetition), but the samples of one batch share a pattern. M is
    at most the size of the smallest complement, where the released code would repeat negatives. In
    the very first step each sample is normalised by its own mean, and Z is the mean of those, so
    that terms stay per sample. Scores are gathered from one product with the whole bank.
    """

    taps = ("pooled",)
    banks = ("bank_student", "bank_teacher")
    bank_student: Tensor  # [N, D]
    bank_teacher: Tensor  # [N, D]
    normaliser_student: Tensor  # []
    normaliser_teacher: Tensor  # []
    embed_student: nn.Linear
    embed_teacher: nn.Linear
    order: Tensor  # [N] int64
    class_ends: Tensor  # [K] int64
    complements: Tensor  # [K] int64

    def __init__(
        self,
        ce_weight: float = 1.0,
        crd_weight: float = 0.8,
        kd_weight: float = 0.0,
        kd_temperature: float = 4.0,
        embedding_dim: int = 128,
        num_negatives: int = 16384,
        temperature: float = 0.07,
        bank_momentum: float = 0.5,
        bank_dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        check_weights(ce_weight=ce_weight, crd_weight=crd_weight, kd_weight=kd_weight)
        check_positive(kd_temperature=kd_temperature, temperature=temperature)
        check_positive(embedding_dim=embedding_dim, num_negatives=num_negatives)
        if not 0 <= bank_momentum < 1:
            raise ConfigError(f"method.bank_momentum must be in [0, 1), not {bank_momentum}")
        self.ce_weight, self.crd_weight, self.kd_weight = ce_weight, crd_weight, kd_weight
        self.kd_temperature, self.temperature = kd_temperature, temperature
        self.embedding_dim, self.num_negatives = embedding_dim, num_negatives
        self.bank_momentum = bank_momentum
        self.bank_dtype = torch.float32 if bank_dtype == "float32" else torch.bfloat16

    def setup(self, probe: Probe) -> None:
        """Make embeddings and banks, and sort the training samples by class."""
        counts = torch.bincount(probe.labels, minlength=probe.num_classes)
        self.smallest = probe.num_samples - int(counts.max())  # samples of other classes, at least
        if self.smallest == 0:
            raise ConfigError("method crd needs training samples of two classes or more")
        for name, network in (("student", probe.student), ("teacher", probe.teachers[0])):
            embed = nn.Linear(network.taps["pooled"][0], self.embedding_dim)
            bound = (3 / self.embedding_dim) ** 0.5  # rows of about unit length
            bank = torch.empty(probe.num_samples, self.embedding_dim).uniform_(-bound, bound)
            setattr(self, f"embed_{name}", embed)
            self.register_buffer(f"bank_{name}", bank.to(self.bank_dtype))
            self.register_buffer(f"normaliser_{name}", torch.zeros(()))  # 0: not set yet
        self.register_buffer("order", probe.labels.argsort(stable=True))  # [N], by class
        self.register_buffer("class_ends", counts.cumsum(0))  # [K], in `order`
        self.register_buffer("complements", probe.num_samples - counts)  # [K]

    def draw(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Rows of the negatives, [B, M]: distinct, and of other classes than the sample's."""
        device = generator.device
        pattern = torch.randperm(self.smallest, generator=generator, device=device)
        size = (len(batch.labels), 1)
        shift = torch.randint(1 << 62, size, generator=generator, device=device)
        complement = self.complements[batch.labels].unsqueeze(1)
        position = (pattern[: self.num_negatives] + shift % complement) % complement
        # The class's own samples lie together in `order`: start behind them and go round its end.
        start = self.class_ends[batch.labels].unsqueeze(1)
        return self.order[(start + position) % len(self.order)]

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce", "crd" and, where it has a weight, "kd", each [B]; then the banks move on."""
        (teacher,) = teachers
        assert batch.drawn is not None
        rows = torch.cat([batch.index.unsqueeze(1), batch.drawn], dim=1)
        own = F.normalize(self.embed_student(student.taps["pooled"]), dim=1)
        other = F.normalize(self.embed_teacher(teacher.taps["pooled"]), dim=1)
        loss = self.contrast(own, self.bank_teacher, self.normaliser_student, rows)
        loss = loss + self.contrast(other, self.bank_student, self.normaliser_teacher, rows)
        self.remember(self.bank_student, batch.index, own)
        self.remember(self.bank_teacher, batch.index, other)
        terms = {"ce": self.label_term(batch, student), "crd": self.crd_weight * loss}
        if self.kd_weight > 0:
            kd = kd_loss(student.logits, teacher.logits, self.kd_temperature)
            terms["kd"] = self.kd_weight * kd
        return terms

    def contrast(self, anchors: Tensor, bank: Tensor, normaliser: Tensor, rows: Tensor) -> Tensor:
        """`nce_loss` [B] of the anchors [B, D] against rows [B, 1 + M] of the other one's bank."""
        # A copy, because the bank changes before the backward pass has read it.
        entries = bank.to(anchors.dtype, copy=True)
        scores = ((anchors @ entries.T).gather(1, rows) / self.temperature).exp()
        mean = len(bank) * scores.detach().mean(dim=1)
        constant = torch.where(normaliser > 0, normaliser, mean)
        normaliser.copy_(torch.where(normaliser > 0, normaliser, mean.mean()))
        return nce_loss(scores / constant.unsqueeze(1), len(bank))

    @torch.no_grad()
    def remember(self, bank: Tensor, index: Tensor, vectors: Tensor) -> None:
        """Move the entries of this batch towards its embeddings, in place."""
        entries = bank[index].to(vectors.dtype)
        mixed = self.bank_momentum * entries + (1 - self.bank_momentum) * vectors
        bank.index_copy_(0, index, F.normalize(mixed, dim=1).to(bank.dtype))
