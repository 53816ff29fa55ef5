"""Frozen detectors, each identified and measured before it teaches."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from kdbench.assembly.make import make
from kdbench.errors import KdbenchError
from kdbench.records.contents import DetectorTeacher
from kdbench.records.identity import canonical, teacher_label
from kdbench.records.passport import TOLERANCE, check_data
from kdbench.records.weights import load_weights
from kdbench.schema.secrets import masked
from kdbench.system.runtime import Runtime
from kdbench.tasks.detection.coco import DetectionData
from kdbench.tasks.detection.networks import Detector
from kdbench.tasks.detection.scores import Scores, evaluate
from kdbench.teachers.loading import TeacherFile, read_sealed, write_sealed


def load_teacher(
    file: TeacherFile,
    data: DetectionData,
    runtime: Runtime,
    runs_dir: Path,
    report: Callable[[str], None],
) -> tuple[Detector, Scores]:
    """Load a frozen teacher onto the run's device, and measure its scores the first time.

    Raises:
        KdbenchError: the teacher has another network, data set or normalisation than its passport
            or the run says, its weights are not finite, or its AP is more than `TOLERANCE` off its
            passport's.
    """
    check_data(file.label, file.passport, data)
    network: Detector = make(file.network, "network", num_classes=data.num_classes)
    option = f"teacher.{file.name}.checkpoint_key"
    for line in load_weights(network, file.path, file.name, file.key, option):
        report(line)
    odd = [key for key, value in network.state_dict().items() if not value.isfinite().all()]
    if odd:
        raise KdbenchError(
            f"{file.label} has weights that are not finite ({odd[0]}): take another file"
        )
    network.requires_grad_(False).eval()
    network.to(runtime.device).to(memory_format=runtime.memory_format)
    path = runs_dir / ".teachers" / f"{measurement_key(file, data)}.json"
    scores = read_measurement(path)
    if scores is None:
        report(f"teacher {file.name}: measuring {file.path} on the validation set of {data.name}")
        scores = evaluate(network, data, runtime.device, runtime.memory_format)
        write_sealed(path, {"detector": list(scores)})
    compare(file, scores, report)
    return network, scores


def measurement_key(file: TeacherFile, data: DetectionData) -> str:
    """Return a key of everything that a teacher's scores depend on."""
    sizes = [data.test_size, data.max_size]
    facts = [*file.contents, file.network.spelt(), data.fingerprint, data.mean, data.std, sizes]
    return hashlib.sha256(canonical(facts).encode()).hexdigest()[:16]


def read_measurement(path: Path) -> Scores | None:
    """Return a teacher's kept scores; None where there are no valid ones."""
    measured = read_sealed(path)
    return None if measured is None else Scores(*measured["detector"])


def compare(file: TeacherFile, scores: Scores, report: Callable[[str], None]) -> None:
    """Check a teacher's measured AP against its passport's.

    Raises:
        KdbenchError: they differ by more than the tolerance.
    """
    expected, found = file.passport.ap, scores.ap or 0.0
    if expected is None:
        report(f"teacher {file.name}: no passport; its AP is {found:.2f}, unverified")
    elif abs(found - expected) > TOLERANCE + 1e-9:
        raise KdbenchError(
            f"{file.label} has an AP of {found:.2f}, its passport says "
            f"{expected:.2f}: wrong file, data or normalisation"
        )


def teacher_entry(file: TeacherFile, scores: Scores) -> DetectorTeacher:
    """Return a teacher's entry in a record."""
    passport = file.passport
    return DetectorTeacher(
        name=teacher_label(file.name, file.network),
        sha256=str(passport.sha256),
        ap=scores.ap,
        passport_ap=passport.ap,
        source=passport.source and masked(passport.source),
    )
