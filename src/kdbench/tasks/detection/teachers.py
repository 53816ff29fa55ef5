"""Frozen detectors, each identified and measured before it teaches."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kdbench.assembly.make import make
from kdbench.errors import KdbenchError
from kdbench.records.identity import canonical
from kdbench.records.passport import TOLERANCE, check_data
from kdbench.system.runtime import Runtime
from kdbench.tasks.detection.coco import DetectionData
from kdbench.tasks.detection.networks import Detector
from kdbench.tasks.detection.scores import Scores, evaluate
from kdbench.teachers.loading import TeacherFile, load_frozen, read_sealed, write_sealed


class Teacher(NamedTuple):
    """A frozen teacher on the run's device."""

    network: Detector
    scores: Scores  # measured on the run's test images
    notices: tuple[str, ...] = ()  # lines for the users of the runs that it teaches


def load_teacher(
    file: TeacherFile,
    data: DetectionData,
    runtime: Runtime,
    runs_dir: Path,
    report: Callable[[str], None],
) -> Teacher:
    """Load a frozen teacher onto the run's device, and measure its scores the first time.

    Raises:
        KdbenchError: the teacher has another network, data set or normalisation than its passport
            or the run says, its weights are not finite, or its AP is more than `TOLERANCE` off its
            passport's.
    """
    check_data(file.label, file.passport, data)
    network: Detector = make(file.network, "network", num_classes=data.num_classes)
    notices = load_frozen(network, file, runtime)
    odd = [key for key, value in network.state_dict().items() if not value.isfinite().all()]
    if odd:
        raise KdbenchError(
            f"{file.label} has weights that are not finite ({odd[0]}): take another file"
        )
    path = runs_dir / ".teachers" / f"{measurement_key(file, data)}.json"
    scores = read_measurement(path)
    if runtime.ranks.any(scores is None):
        report(f"teacher {file.name}: measuring {file.path} on the validation set of {data.name}")
        scores = evaluate(network, data, runtime)
        measured = {"detector": list(scores)}
        runtime.ranks.by_first(partial(write_sealed, path, measured))
    assert scores is not None
    notices += compare(file, scores)
    return Teacher(network, scores, tuple(notices))


def measurement_key(file: TeacherFile, data: DetectionData) -> str:
    """Return a key of everything that a teacher's scores depend on."""
    sizes = [data.test_size, data.max_size]
    facts = [*file.contents, file.network.spelt(), data.fingerprint, data.mean, data.std, sizes]
    return hashlib.sha256(canonical(facts).encode()).hexdigest()[:16]


def read_measurement(path: Path) -> Scores | None:
    """Return a teacher's kept scores; None where there are no valid ones."""
    measured = read_sealed(path)
    return None if measured is None else Scores(*measured["detector"])


def compare(file: TeacherFile, scores: Scores) -> list[str]:
    """Check a teacher's measured AP against its passport's; return lines for the user.

    Raises:
        KdbenchError: they differ by more than the tolerance.
    """
    expected, found = file.passport.ap, scores.ap or 0.0
    if expected is None:
        return [f"teacher {file.name}: no passport; its AP is {found:.2f}, unverified"]
    if abs(found - expected) > TOLERANCE + 1e-9:
        raise KdbenchError(
            f"{file.label} has an AP of {found:.2f}, its passport says "
            f"{expected:.2f}: wrong file, data or normalisation"
        )
    return []
