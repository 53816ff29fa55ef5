"""How alike two networks' features are: centred kernel alignment (CKA) with linear kernels.

Sources: Kornblith et al. 2019 (arXiv 1905.00414) for CKA; Nguyen et al. 2021 (arXiv 2010.15327),
equations 2 and 3, for the estimate over batches.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.analysis.drawings import Panel, maps
from kdbench.analysis.result import Drawing, Result, Table, fixed
from kdbench.analysis.subjects import Subject, first_seeds, outputs
from kdbench.errors import ConfigError
from kdbench.networks.layers import taps_of

LEAST = 4  # images of a batch: the unbiased estimate divides by n - 3


def hsic(first: Tensor, second: Tensor) -> Tensor:
    """Return the unbiased estimate HSIC_1 of Song et al. (2012) of two kernel matrices [n, n]: [].

    Source: Nguyen et al. 2021, equation 3. Diagonals play no part.
    """
    n = len(first)
    one, other = (matrix - torch.diag(matrix.diagonal()) for matrix in (first, second))
    rows, columns = one.sum(dim=0), other.sum(dim=0)
    trace = (one * other).sum()  # of their product: both are symmetric
    apart = rows.sum() * columns.sum() / ((n - 1) * (n - 2))
    return (trace + apart - 2 / (n - 2) * (rows @ columns)) / (n * (n - 3))


class Alignment:
    """CKA of every stage of one network with every stage of another, batch by batch.

    A batch adds its three HSIC_1; CKA is the ratio of their sums (Nguyen et al. 2021, equation 2),
    and does not depend on the size of the batches in expectation.

    Args:
        first: the names of one network's taps.
        second: of the other's.
    """

    def __init__(self, first: list[str], second: list[str]) -> None:
        self.names = first, second
        self._both = np.zeros((len(first), len(second)))
        self._own = np.zeros(len(first)), np.zeros(len(second))

    def add(self, first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
        """Add the features of one batch, [B, ...] each; a batch of fewer than 4 adds nothing."""
        sides = [
            [kernel(taps[name]) for name in names]
            for taps, names in zip((first, second), self.names, strict=True)
        ]
        if len(sides[0][0]) < LEAST:
            return
        for own, kernels in zip(self._own, sides, strict=True):
            own += [float(hsic(one, one)) for one in kernels]
        self._both += [[float(hsic(one, other)) for other in sides[1]] for one in sides[0]]

    def cka(self) -> np.ndarray:
        """Return the CKA of each pair, [first, second]; NaN where a feature does not vary."""
        norms = np.sqrt(np.outer(*(np.clip(own, 0, None) for own in self._own)))
        return np.divide(self._both, norms, out=np.full_like(norms, np.nan), where=norms > 0)


def kernel(feature: Tensor) -> Tensor:
    """Return the linear kernel [B, B] in float64 of a feature [B, ...], centred for precision."""
    flat = feature.flatten(1).double()
    flat = flat - flat.mean(dim=0)  # HSIC_1 is the same without; its terms are smaller so
    return flat @ flat.T


def measure(subjects: Sequence[Subject]) -> Result:
    """Measure the CKA of each stage of a student with each of its teacher, of one seed each.

    Raises:
        ConfigError: none has a teacher.
    """
    taught = [one for one in first_seeds(subjects) if one.teachers]
    if not taught:
        raise ConfigError("similarity is to a teacher: name a run with one, as of method=kd")
    numbers: dict[str, object] = {}
    panels, rows = [], []
    for one in taught:
        for name, teacher in one.teachers.items():
            found = align(one, teacher)
            title = f"{one.name}, {name}" if len(one.teachers) > 1 else one.name
            ours, theirs = found.names
            numbers[title] = {"student": ours, "teacher": theirs, "cka": found.cka()}
            panels.append(Panel(title, found.cka(), ours, theirs))
            same = [tap for tap in ours if tap in theirs]
            cells = [found.cka()[ours.index(tap), theirs.index(tap)] for tap in same]
            rows += [[title, tap, fixed(cell, 4)] for tap, cell in zip(same, cells, strict=True)]
    table = Table(
        "Linear CKA of equally named taps of student and teacher: unbiased, over batches of the "
        "test images.",
        ["network", "tap", "CKA"],
        rows,
    )
    drawing = Drawing(
        "similarity",
        "CKA of stages",
        "Rows: the student's taps; columns: the teacher's; one colour scale for all.",
        lambda palette: maps(palette, panels, 0, 1, "viridis", "CKA"),
    )
    return Result(numbers, [table], [drawing])


def stages(network: nn.Module) -> list[str]:
    """Return the taps that are compared: the stem, the end of each stage, and the pooled vector."""
    named = taps_of(network)
    return [tap for tap in named if re.fullmatch(r"stem|stage\d+|pooled", tap)]


def align(one: Subject, teacher: nn.Module) -> Alignment:
    """Return the alignment of a student with a teacher over the test images."""
    found = Alignment(stages(one.network), stages(teacher))
    both = (
        outputs(network, one.dataset.test, one.dataset, one.device)
        for network in (one.network, teacher)
    )
    for ours, theirs in zip(*both, strict=True):
        found.add(ours.taps, theirs.taps)
    return found
