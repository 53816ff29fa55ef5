"""Whether a network is right as often as it says, before and after temperature scaling.

Source: Guo et al., On Calibration of Modern Neural Networks, 2017 (arXiv 1706.04599).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import log_softmax

from kdbench.analysis.drawings import Line, lines
from kdbench.analysis.result import Drawing, Result, Table, fixed
from kdbench.analysis.subjects import Subject, first_seeds, logits_of
from kdbench.assembly.evaluation import BINS, calibration_error

COLDEST, HOTTEST = 1e-3, 1e3  # temperatures that are looked at


class Bin(NamedTuple):
    """The images whose confidence lies in (low, high]."""

    low: float
    high: float
    n: int
    confidence: float | None  # mean; None without images
    accuracy: float | None  # share of right answers


class Calibration(NamedTuple):
    """Of a network on some images."""

    ece: float  # percent, over `BINS` bins of equal width
    nll: float  # nats
    bins: list[Bin]


def calibration(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """Return ECE, NLL and the reliability diagram of logits [n, K] with labels [n]."""
    logs = log_softmax(logits, axis=1)
    confidence, correct = np.exp(logs.max(axis=1)), logits.argmax(axis=1) == labels
    ece = calibration_error(torch.from_numpy(confidence), torch.from_numpy(correct))
    return Calibration(ece, nll(logits, labels), reliability(confidence, correct))


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return mean negative log-likelihood in nats."""
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def reliability(confidence: np.ndarray, correct: np.ndarray) -> list[Bin]:
    """Return bins of equal width in confidence [n]; each has its upper edge."""
    index = np.clip(np.ceil(confidence * BINS).astype(int), 1, BINS) - 1
    bins = []
    for number in range(BINS):
        rows = index == number
        n = int(rows.sum())
        means = (float(confidence[rows].mean()), float(correct[rows].mean())) if n else (None, None)
        bins.append(Bin(number / BINS, (number + 1) / BINS, n, *means))
    return bins


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the T that minimises the NLL of logits / T.

    The NLL is convex in 1 / T; its derivative is the mean of E[z] - z_y under softmax(z / T), and
    its root is found by Brent's method. A network that is never wrong gets the lowest T looked at.
    """
    right = logits[np.arange(len(labels)), labels]

    def slope(log_t: float) -> float:
        probabilities = np.exp(log_softmax(logits / np.exp(log_t), axis=1))
        return float(((probabilities * logits).sum(axis=1) - right).mean())

    low, high = float(np.log(COLDEST)), float(np.log(HOTTEST))
    # Above the best T the softmax is too flat: it expects less than the label's logit.
    if slope(low) <= 0:
        return COLDEST
    return float(np.exp(brentq(slope, low, high, xtol=1e-15))) if slope(high) < 0 else HOTTEST


def halves(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of two halves, every class split evenly, give or take one image."""
    order = np.argsort(labels, kind="stable")
    ranked = labels[order]
    rank = np.arange(len(labels)) - np.searchsorted(ranked, ranked, side="left")
    odd = np.zeros(len(labels), dtype=bool)
    odd[order] = rank % 2 == 1
    return np.flatnonzero(~odd), np.flatnonzero(odd)


class Scaled(NamedTuple):
    """Logits [n, K] over the temperatures that were fitted for them."""

    logits: np.ndarray
    temperatures: list[float]
    fitted_on: str


def scaled(
    logits: np.ndarray, labels: np.ndarray, held_out: tuple[np.ndarray, np.ndarray] | None
) -> Scaled:
    """Return logits under temperature scaling; no image is scored under a T that it helped to fit.

    T is fitted on `held_out` logits and labels (Guo et al.: the validation set). Where a run held
    out none, each half of the images is scored under the other half's T; that is ours.
    """
    if held_out is not None:
        fitted = temperature(*held_out)
        return Scaled(logits / fitted, [fitted], "validation")
    result, fits = np.empty_like(logits), []
    first, second = halves(labels)
    for rows, others in ((first, second), (second, first)):
        fitted = temperature(logits[others], labels[others]) if len(others) else 1.0
        result[rows] = logits[rows] / fitted
        fits.append(fitted)
    return Scaled(result, fits, "the other half of the test images")


def measure(subjects: Sequence[Subject]) -> Result:
    """Measure each student's calibration, before and after temperature scaling."""
    numbers, rows = {}, []
    plain: dict[str, Calibration] = {}
    after: dict[str, Calibration] = {}
    for one in subjects:
        cold = scaled(one.logits, one.labels, _held_out(one))
        name = one.name
        plain[name] = calibration(one.logits, one.labels)
        after[name] = calibration(cold.logits, one.labels)
        numbers[name] = {
            "before": plain[name],
            "after": after[name],
            "temperatures": cold.temperatures,
            "fitted_on": cold.fitted_on,
        }
        pairs = [(part.ece, part.nll) for part in (plain[name], after[name])]
        words = [text for ece, nats in pairs for text in (fixed(ece), fixed(nats, 4))]
        rows.append([name, *words, " / ".join(fixed(t, 3) for t in cold.temperatures)])
    table = Table(
        f"Expected calibration error over {BINS} bins of equal width (percent) and negative "
        "log-likelihood (nats), before and after temperature scaling. No image is scored under a "
        "temperature that it helped to fit: it is the validation images', or, where none were held "
        "out, of each half of the test images the other half's.",
        ["network", "ECE", "NLL", "ECE, scaled", "NLL, scaled", "temperature"],
        rows,
    )
    shown = [one.name for one in first_seeds(subjects)]
    drawings = [
        _drawing("calibration", "Reliability", shown, plain),
        _drawing("calibration-scaled", "Reliability after temperature scaling", shown, after),
    ]
    return Result(numbers, [table], drawings)


def _held_out(one: Subject) -> tuple[np.ndarray, np.ndarray] | None:
    split = one.dataset.val
    if split is None:
        return None
    return logits_of(one.network, split, one.dataset, one.device), split.labels.numpy()


def _drawing(name: str, title: str, shown: Sequence[str], found: dict[str, Calibration]) -> Drawing:
    drawn = []
    for network in shown:
        filled = [one for one in found[network].bins if one.confidence is not None]
        x = [one.confidence for one in filled if one.confidence is not None]
        drawn.append(Line(network, x, [one.accuracy for one in filled]))
    return Drawing(
        name,
        title,
        "Share of right answers over mean confidence, a point a bin; on the dashed line a network "
        "is right as often as it says.",
        lambda palette: lines(palette, drawn, "confidence", "accuracy", diagonal=True),
    )
