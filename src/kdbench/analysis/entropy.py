"""How a student does where its teacher is sure, and where it is not.

That samples of high teacher entropy are the ones to learn from is the claim of ER-KD and EA-KD
(arXiv 2311.13621); that a teacher's wrong answers are to be mended is that of DR-KD (2201.11319).
DynamicKD (2305.05233) changes the student's own entropy, which is drawn over the epochs.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import log_softmax

from kdbench.analysis.drawings import Line, lines
from kdbench.analysis.result import Drawing, Result, Table, fixed
from kdbench.analysis.subjects import Subject, first_seeds
from kdbench.assembly.finished import Source
from kdbench.errors import ConfigError, KdbenchError
from kdbench.methods.dr_kd import is_wrong, rectify
from kdbench.system.files import read_small
from kdbench.tracking.run_logger import METRICS_FILE, rows_of

BINS = 10  # of equally many images
MEASURED = "test/entropy"  # in the rows of a run's epochs


class Outputs(NamedTuple):
    """Logits of one student and its teacher on the same images, float64 [n, K]; labels [n]."""

    student: np.ndarray
    teacher: np.ndarray
    labels: np.ndarray

    def at(self, rows: np.ndarray) -> "Outputs":
        """Return the outputs of some images."""
        return Outputs(self.student[rows], self.teacher[rows], self.labels[rows])


class Scores(NamedTuple):
    """A student beside its teacher on `n` images; every number is a mean over them."""

    n: int
    accuracy: float  # percent
    teacher_accuracy: float  # percent
    agreement: float  # percent of images for which both choose one class
    loss: float  # nats, against the labels
    divergence: float  # KL(teacher || student) in nats, temperature 1
    rectified_divergence: float  # the same from the teacher whose wrong answers are mended


class Bin(NamedTuple):
    """The images between two entropies of the teacher, nats."""

    low: float
    high: float
    scores: Scores


def entropy(logits: np.ndarray) -> np.ndarray:
    """Return Shannon entropy [n] in nats of the softmax of logits [n, K], temperature 1."""
    logs = log_softmax(logits, axis=1)
    return -(np.exp(logs) * logs).sum(axis=1)


def divergence(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """Return KL(softmax(teacher) || softmax(student)) [n] in nats, of logits [n, K]."""
    logs = log_softmax(teacher, axis=1)
    return (np.exp(logs) * (logs - log_softmax(student, axis=1))).sum(axis=1)


def scores(outputs: Outputs) -> Scores:
    """Score a student on the images, of which there is at least one."""
    student, teacher, labels = outputs
    ours, theirs = student.argmax(axis=1), teacher.argmax(axis=1)
    mended = rectify(torch.from_numpy(teacher), torch.from_numpy(labels)).numpy()
    rows = np.arange(len(labels))
    return Scores(
        n=len(labels),
        accuracy=percent(ours == labels),
        teacher_accuracy=percent(theirs == labels),
        agreement=percent(ours == theirs),
        loss=float(-log_softmax(student, axis=1)[rows, labels].mean()),
        divergence=float(divergence(teacher, student).mean()),
        rectified_divergence=float(divergence(mended, student).mean()),
    )


def by_entropy(outputs: Outputs, bins: int = BINS) -> list[Bin]:
    """Return scores on bins of equally many images, give or take one, from sure to unsure.

    Images of equal entropy keep their order; with fewer images than bins there are fewer bins.
    """
    found = entropy(outputs.teacher)
    order = np.argsort(found, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return [Bin(found[part[0]], found[part[-1]], scores(outputs.at(part))) for part in parts]


def by_answer(outputs: Outputs) -> dict[str, Scores]:
    """Return scores on the images that the teacher gets right, and on those that it gets wrong.

    DR-KD rectifies the wrong ones. A tie with the label counts as right, as there.
    """
    wrong = is_wrong(torch.from_numpy(outputs.teacher), torch.from_numpy(outputs.labels)).numpy()
    parts = {"right": np.flatnonzero(~wrong), "wrong": np.flatnonzero(wrong)}
    return {name: scores(outputs.at(rows)) for name, rows in parts.items() if len(rows)}


def over_epochs(source: Source) -> list[float | None] | None:
    """Return the student's mean entropy on the test images after each epoch, in nats.

    None stands for epochs of a time when runs did not measure it; it is all there is of a
    checkpoint, of a run without its metrics, and of one that never measured it.

    Raises:
        KdbenchError: the metrics are not those of the run's record.
    """
    path = source.folder / METRICS_FILE
    if source.record is None or not path.is_file():
        return None
    try:
        content = read_small(path)
    except (OSError, ValueError) as error:
        raise KdbenchError(f"{path} cannot be read ({error}): restore it") from None
    if hashlib.sha256(content).hexdigest() != source.record.metrics_sha256:
        raise KdbenchError(f"{path} is not the file of its record: restore it, or remove it")
    values = [row.get(MEASURED) for row in rows_of(content)]
    return None if all(value is None for value in values) else values


def percent(correct: np.ndarray) -> float:
    """Return the share of what is true, in percent."""
    return 100 * float(correct.mean())


HEADS = ["network", "images", "n", "top-1, %", "teacher's, %", "agreement, %", "loss", "KL",
         "KL, rectified"]  # fmt: skip


def measure(subjects: Sequence[Subject]) -> Result:
    """Score each student by bins of its teacher's entropy and by its answers.

    Raises:
        ConfigError: none has a teacher.
    """
    if all(one.teacher_logits is None for one in subjects):
        raise ConfigError("entropy is the teacher's: name a run with a teacher, as of method=kd")
    numbers: dict[str, object] = {}
    rows, curves, courses = [], {}, {}
    for one in subjects:
        if one.teacher_logits is None:
            continue
        found = Outputs(one.logits, one.teacher_logits, one.labels)
        bins, answers = by_entropy(found), by_answer(found)
        numbers[one.name] = {"bins": bins, "answers": answers}
        rows += [_row(one.name, f"teacher {name}", part) for name, part in answers.items()]
        rows.append(_row(one.name, "all", scores(found)))
        curves[one.name] = bins
        if (course := over_epochs(one.source)) is not None:
            numbers[one.name] = {"bins": bins, "answers": answers, "epochs": course}
            courses[one.name] = course
    shown = [one.name for one in first_seeds(subjects) if one.name in curves]
    table = Table(
        "Where the teacher is right and where it is wrong; loss and divergences (teacher to "
        "student, temperature 1) in nats. Rectified: from the teacher whose label's and largest "
        "logit are exchanged where it is wrong (DR-KD).",
        HEADS,
        rows,
    )
    drawings = [_drawing(key, shown, curves) for key in ("accuracy", "loss")]
    if measured := [name for name in shown if name in courses]:
        drawings.append(_course(measured, courses))
    return Result(numbers, [table], drawings)


def _row(name: str, images: str, part: Scores) -> list[str]:
    percents = [fixed(value) for value in part[1:4]]
    return [name, images, str(part.n), *percents, *(fixed(value, 3) for value in part[4:])]


def _drawing(key: str, shown: Sequence[str], curves: dict[str, list[Bin]]) -> Drawing:
    label = {"accuracy": "top-1, %", "loss": "loss, nats"}[key]

    def line(name: str) -> Line:
        bins = curves[name]
        middles = [(one.low + one.high) / 2 for one in bins]
        return Line(name, middles, [getattr(one.scores, key) for one in bins])

    return Drawing(
        f"entropy-{key}",
        f"{label.partition(',')[0].capitalize()} by the teacher's entropy",
        f"{BINS} bins of equally many test images; each point at the middle of its bin.",
        lambda palette: lines(
            palette, [line(name) for name in shown], "entropy of the teacher, nats", label
        ),
    )


def _course(shown: Sequence[str], courses: Mapping[str, Sequence[float | None]]) -> Drawing:
    drawn = [Line(name, range(1, len(courses[name]) + 1), courses[name]) for name in shown]
    return Drawing(
        "entropy-epochs",
        "The student's entropy over the epochs",
        "Mean Shannon entropy of its softmax on the test images, temperature 1, after each epoch.",
        lambda palette: lines(palette, drawn, "epoch", "entropy, nats"),
    )
