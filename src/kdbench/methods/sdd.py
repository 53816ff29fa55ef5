"""Scale decoupled distillation (Wei, Luo & Luo, CVPR 2024, arXiv 2403.13512)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import ConfigError
from kdbench.methods.base import Method, Wrapper, check_positive
from kdbench.networks.adapters import map_classifier
from kdbench.networks.heads import CLASS_MAP, class_maps, with_class_maps
from kdbench.types import Batch, Output, Probe

NO_LOGIT_METHOD = "method.inner must compare the logits of single images with one teacher's, as kd"


def cell_logits(output: Output, maps: Tensor, scales: Sequence[int]) -> Tensor:
    """The logits of the image and of every cell of its class maps, pooled to each scale.

    Shapes: logits [B, K], maps [B, K, H, W] -> [C, B, K] with C = sum of the squared scales; the
    first scale is 1, whose only cell is the image. A map smaller than a scale repeats its cells.
    """
    cells = [F.adaptive_avg_pool2d(maps, scale).flatten(2).permute(2, 0, 1) for scale in scales[1:]]
    return torch.cat([output.logits.unsqueeze(0), *cells])


def cell_weights(teacher_cells: Tensor, labels: Tensor, complementary_weight: float) -> Tensor:
    """1 where the teacher is as right or wrong on a cell as on the image, else another weight.

    Shapes: [C, B, K], labels [B] -> [C, B]. Source: Wei et al. 2024 and its code.
    """
    right = teacher_cells.argmax(dim=2) == labels
    differs = (right != right[:1]).to(teacher_cells.dtype)
    return 1 + (complementary_weight - 1) * differs


class SDD(Wrapper):
    """L = ce + mean over the cells of w_c * (what the inner recipe says of a cell's logits).

    A cell's logits are the classifier on the cell's average of the last map; the cells are those
    of the grids 1x1, 2x2, 4x4 (the paper's M), w_c is `complementary_weight` (the paper's beta)
    where the teacher is right on the cell and wrong on the image or the other way round, else 1.
    The label term is the inner recipe's, on the image.

    Departures: the released code replaces a loss that is not finite by 0, ours is finite; it
    pools 4x4 cells to 2x2 and 1x1, ours pools the map, which is the same for maps of 4 x 4 or a
    multiple.
    """

    def __init__(
        self,
        inner: Method,
        scales: tuple[int, ...] = (1, 2, 4),
        complementary_weight: float = 2.0,
    ) -> None:
        super().__init__(inner)
        self.soft_labels = False  # type: ignore[misc]  # a ClassVar; it asks who is right
        check_positive(complementary_weight=complementary_weight)
        scales = tuple(scales)
        if scales[:1] != (1,) or list(scales) != sorted(set(scales)):
            raise ConfigError(f"method.scales must rise from 1, as [1, 2, 4], not {list(scales)}")
        if inner.num_teachers != 1 or inner.views != 1 or inner.taps or inner.batch_terms:
            raise ConfigError(NO_LOGIT_METHOD)
        self.taps = ("map",)
        self.scales = scales
        self.complementary_weight = complementary_weight
        self.register_buffer("teacher_weight", torch.zeros(0))
        self.register_buffer("teacher_bias", torch.zeros(0))

    def setup(self, probe: Probe) -> None:
        """Keep the teacher's classifier; the inner recipe sees networks without features."""
        bare = [network._replace(taps={}) for network in (probe.student, *probe.teachers)]
        try:
            super().setup(probe._replace(student=bare[0], teachers=tuple(bare[1:])))
        except (ConfigError, KeyError):
            raise ConfigError(NO_LOGIT_METHOD) from None
        self.taps = ("map",)
        self.teacher_weight, self.teacher_bias = map_classifier(probe.teachers[0], "teacher")

    def adapt(self, student: nn.Module, probe: Probe) -> nn.Module:
        """The student with a tap for its class maps."""
        map_classifier(probe.student, "student")
        self.own_taps = (CLASS_MAP,)
        return with_class_maps(super().adapt(student, probe))

    def cells_of(self, batch: Batch) -> Batch:
        """The batch as often as there are cells, one after another; images are not repeated."""
        count = sum(scale**2 for scale in self.scales)
        targets = batch.targets
        return batch._replace(
            labels=batch.labels.repeat(count),
            index=batch.index.repeat(count),
            targets=None if targets is None else targets.repeat(count, 1),
        )

    def draw(self, batch: Batch, generator: torch.Generator) -> Tensor | None:
        """Return the inner recipe's, for every cell."""
        return self.inner.draw(self.cells_of(batch), generator)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """The inner recipe's terms, each [B]."""
        (teacher,) = teachers
        teacher_maps = class_maps(teacher.taps["map"], self.teacher_weight, self.teacher_bias)
        student_cells = cell_logits(student, student.taps[CLASS_MAP], self.scales)
        teacher_cells = cell_logits(teacher, teacher_maps, self.scales)
        weights = cell_weights(teacher_cells, batch.labels, self.complementary_weight)
        outputs = [Output(cells.flatten(0, 1), {}) for cells in (student_cells, teacher_cells)]
        terms = self.inner(self.cells_of(batch), outputs[0], (outputs[1],))
        for name, term in terms.items():
            if term.ndim != 1:
                raise ConfigError(f"method.inner couples the batch in its term {name}: use kd")
        cells = {name: term.view_as(weights) for name, term in terms.items()}
        return {
            name: term[0] if name == "ce" else (weights * term).mean(dim=0)
            for name, term in cells.items()
        }
