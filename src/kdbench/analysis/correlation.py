"""Which classes a network sees together: the correlation of its class logits over images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kdbench.analysis.drawings import Panel, maps
from kdbench.analysis.result import Drawing, Result, Table, fixed
from kdbench.analysis.subjects import Subject, first_seeds
from kdbench.errors import KdbenchError


def class_correlation(logits: np.ndarray) -> np.ndarray:
    """Compute Pearson's correlation of every two class logits over images: [n, K] -> [K, K].

    Source: CRD (Tian et al. 2020, arXiv 1910.10699), whose figures show the difference of a
    student's and its teacher's.

    Raises:
        KdbenchError: a class has the same logit for all images, so that it correlates with nothing.
    """
    centred = logits - logits.mean(axis=0)
    norms = np.sqrt((centred**2).sum(axis=0))
    if not norms.all():
        constant = int(np.flatnonzero(norms == 0)[0])
        raise KdbenchError(
            f"class {constant} has one logit for all {len(logits)} images, and so no correlation: "
            "score on more images, or take a network that was trained"
        )
    return np.clip((centred / norms).T @ (centred / norms), -1, 1)


def class_means(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Average the logits of each class's images: [n, K] and [n] -> [K, K], a row a true class.

    Source: the released code of DKD (mdistiller), which calls the difference of two such matrices
    a correlation map; LSKD and LumiNet draw the same.

    Raises:
        KdbenchError: a class has no image.
    """
    classes = logits.shape[1]
    counts = np.bincount(labels, minlength=classes)
    if not counts.all():
        empty = int(np.flatnonzero(counts == 0)[0])
        raise KdbenchError(
            f"class {empty} has no image to score on, and so no mean: give each class some"
        )
    sums = np.zeros((classes, classes))
    np.add.at(sums, labels, logits)
    return sums / counts[:, None]


def off_diagonal(matrix: np.ndarray) -> float:
    """Return the mean size of a matrix [K, K] off its diagonal, where a correlation is 1 anyway."""
    classes = len(matrix)
    return float(np.abs(matrix[~np.eye(classes, dtype=bool)]).mean())


class Correlation(NamedTuple):
    """A student's class logits beside its teacher's; means over pairs of different classes."""

    difference: float | None  # mean |correlation of the student's - of the teacher's|
    mean_logit_difference: float | None  # mean |class-mean logits of the student - the teacher's|


def measure(subjects: Sequence[Subject]) -> Result:
    """Map each student's and each teacher's correlations, and their differences."""
    numbers, rows = {}, []
    for one in subjects:
        difference = mean_difference = None
        if one.teacher_logits is not None:
            ours, theirs = class_correlation(one.logits), class_correlation(one.teacher_logits)
            means = [class_means(z, one.labels) for z in (one.logits, one.teacher_logits)]
            difference = off_diagonal(ours - theirs)
            mean_difference = float(np.abs(means[0] - means[1]).mean())
        numbers[one.name] = Correlation(difference, mean_difference)
        words = [fixed(difference, 4), fixed(mean_difference, 3)]
        rows.append([one.name, one.taught_by, *words])
    table = Table(
        "Correlation of class logits over the test images: mean absolute difference to the "
        "teacher's, over pairs of different classes; and that of the mean logits of each class.",
        ["network", "compared with", "|Δ correlation|", "|Δ mean logit|"],
        rows,
    )
    return Result(numbers, [table], _drawings(first_seeds(subjects)))


def _drawings(shown: Sequence[Subject]) -> list[Drawing]:
    matrices = {one.name: class_correlation(one.logits) for one in shown}
    teachers: dict[str, np.ndarray] = {}
    for one in shown:
        if one.teacher_logits is not None and one.taught_by not in teachers:
            teachers[one.taught_by] = class_correlation(one.teacher_logits)
    own = [Panel(f"teacher {name}", matrix) for name, matrix in teachers.items()]
    own += [Panel(name, matrix) for name, matrix in matrices.items()]
    found = [
        Drawing(
            "correlation",
            "Correlation of class logits",
            "Each pixel is a pair of classes, over all test images; one colour scale for all.",
            lambda palette: maps(palette, own, -1, 1, "coolwarm", "correlation"),
        )
    ]
    apart = [
        Panel(one.name, np.abs(matrices[one.name] - teachers[one.taught_by]))
        for one in shown
        if one.teacher_logits is not None
    ]
    if apart:
        high = max(float(panel.values.max()) for panel in apart)
        found.append(
            Drawing(
                "correlation-difference",
                "Difference to the teacher's correlation",
                "Absolute difference, student and teacher; one colour scale for all.",
                lambda palette: maps(palette, apart, 0, high, "viridis", "|difference|"),
            )
        )
    return found
