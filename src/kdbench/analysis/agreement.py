"""Fidelity: how far a student answers as its teacher, and two seeds as each other."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from kdbench.analysis.entropy import divergence, percent
from kdbench.analysis.result import Result, Table, fixed
from kdbench.analysis.subjects import Subject


class Fidelity(NamedTuple):
    """A student beside its teacher; means over images.

    Source: Stanton et al., Does Knowledge Distillation Really Work?, 2021 (arXiv 2106.05945), for
    top-1 agreement and the divergence.
    """

    top1: float  # percent of images for which both choose one class
    divergence: float  # KL(teacher || student) in nats, temperature 1
    rank_correlation: float  # Spearman's, of the classes by their logits, within an image


def fidelity(student: np.ndarray, teacher: np.ndarray) -> Fidelity:
    """Measure the fidelity of logits [n, K] to the teacher's on the same images."""
    same = percent(student.argmax(axis=1) == teacher.argmax(axis=1))
    ranks = float(rank_correlation(student, teacher).mean())
    return Fidelity(same, float(divergence(teacher, student).mean()), ranks)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation [n] of each two rows [n, K]; 0 where a row is constant."""
    one, other = (rankdata(logits, axis=1) for logits in (first, second))
    one, other = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (one, other))
    norms = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    products = (one * other).sum(axis=1)
    return np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0)


class Seeds(NamedTuple):
    """What seeds of one configuration have in common; `n` images, means over pairs of seeds."""

    seeds: int
    disagreement: float  # percent of images for which two seeds choose different classes
    one_right: float  # percent of images that one of two seeds gets right and the other wrong
    predicted_std: float  # of top-1 between seeds, in points; see `seeds_apart`
    measured_std: float  # the sample standard deviation of their top-1, in points


def seeds_apart(chosen: np.ndarray, labels: np.ndarray) -> Seeds:
    """Compare seeds by their predictions [s, n], s of 2 or more; labels [n].

    If a network is right about image i with probability p_i, independently of the others, then the
    variance of its accuracy is sum_i p_i (1 - p_i) / n^2, and two networks differ in being right
    about image i with probability 2 p_i (1 - p_i). So the standard deviation that the disagreement
    predicts is sqrt(one_right / (2 n)). That errors are about independent so is the finding of
    Jordan, On the Variance of Neural Network Training, 2023 (arXiv 2304.01910).
    """
    correct = chosen == labels
    pairs = list(combinations(range(len(chosen)), 2))
    differ = float(np.mean([percent(correct[a] != correct[b]) for a, b in pairs]))
    return Seeds(
        seeds=len(chosen),
        disagreement=float(np.mean([percent(chosen[a] != chosen[b]) for a, b in pairs])),
        one_right=differ,
        predicted_std=100 * float(np.sqrt(differ / 100 / (2 * len(labels)))),
        measured_std=float(np.std(100 * correct.mean(axis=1), ddof=1)),
    )


def measure(subjects: Sequence[Subject]) -> Result:
    """Measure each student's fidelity, and the disagreement of each configuration's seeds."""
    numbers: dict[str, object] = {}
    rows = []
    for one in subjects:
        if one.teacher_logits is not None:
            found = fidelity(one.logits, one.teacher_logits)
            numbers[one.name] = found
            texts = fixed(found.top1), fixed(found.divergence, 4), fixed(found.rank_correlation, 4)
            rows.append([one.name, one.taught_by, *texts])
    tables = []
    if rows:
        caption = (
            "Fidelity on the test images: both choose one class; KL (teacher to student, "
            "temperature 1, nats); Spearman's correlation of the classes' logits in an image."
        )
        heads = ["network", "compared with", "agreement, %", "KL", "rank correlation"]
        tables.append(Table(caption, heads, rows))
    seeds = _by_cell(subjects)
    numbers["seeds"] = seeds
    if seeds:
        caption = (
            "Seeds beside each other: pairs that choose different classes; that differ in being "
            "right; and the standard deviation of top-1 (points) that follows from the latter if "
            "errors are independent, beside the measured one."
        )
        heads = ["configuration", "seeds", "disagreement, %", "one right, %", "predicted std",
                 "measured std"]  # fmt: skip
        lines = [
            [name, str(one.seeds), *(fixed(value) for value in one[1:])]
            for name, one in seeds.items()
        ]
        tables.append(Table(caption, heads, lines))
    return Result(numbers, tables, [])


def _by_cell(subjects: Sequence[Subject]) -> dict[str, Seeds]:
    groups: dict[str, list[Subject]] = {}
    for one in subjects:
        if one.source.cell is not None:
            groups.setdefault(one.source.cell, []).append(one)
    return {
        cell: seeds_apart(np.stack([one.logits.argmax(axis=1) for one in group]), group[0].labels)
        for cell, group in groups.items()
        if len(group) > 1
    }
