"""The end of a detector's run: its weights, its passport and its record are written."""

import hashlib
from datetime import UTC, datetime
from importlib.metadata import version

from kdbench.errors import writing
from kdbench.records.checkpoint import checkpoint_paths
from kdbench.records.contents import Data, DetectorRecord, DetectorTeacher, RunFacts
from kdbench.records.passport import Passport, beside, sha256_of, write_passport
from kdbench.records.record import RECORD_FILE, write_record
from kdbench.records.weights import STUDENT_FILE, save_weights
from kdbench.system.runtime import Runtime
from kdbench.tasks.detection.coco import DetectionData
from kdbench.tasks.detection.training import Training
from kdbench.tracking.run_logger import lines
from kdbench.training.jobs import Job
from kdbench.training.recording import costs, facts_of

CURVE = ("step", "train/loss", "test/ap")


def describe(
    job: Job, data: DetectionData, teachers: list[DetectorTeacher], runtime: Runtime
) -> RunFacts:
    """Return the fields of a run's record that precede its results."""
    sizes = len(data.train), len(data.test.pictures)
    named = Data(name=data.name, sha256=data.fingerprint, train=sizes[0], test=sizes[1])
    libraries = {"pycocotools": version("pycocotools")}
    return facts_of(job, named, runtime, teachers, 0, libraries)


def finish(job: Job, training: Training, facts: RunFacts) -> DetectorRecord:
    """Write the student with its passport, then the record; "done" is written last.

    Raises:
        WriteError: a file cannot be written.
    """
    with writing(job.folder):
        return _write(training, facts)


def _write(training: Training, facts: RunFacts) -> DetectorRecord:
    run, history = training.run, training.state.history
    weights = run.folder / STUDENT_FILE
    save_weights(run.student, weights)
    passport = Passport(
        sha256=sha256_of(weights),
        network=facts.config.student.name,
        dataset=run.data.name,
        mean=run.data.mean,
        std=run.data.std,
        ap=history[-1]["test/ap"],
        source=f"kdbench run {run.run_id}",
    )
    write_passport(passport, beside(weights))
    record = results(training, facts, passport.sha256)
    write_record(record, run.folder / RECORD_FILE)
    for path in checkpoint_paths(run.folder):
        path.unlink()
    return record


def results(training: Training, facts: RunFacts, sha256: str | None) -> DetectorRecord:
    """Return a finished run's record, with the scores after the last step as headline.

    Args:
        training: the run, at its end.
        facts: the fields of `describe`.
        sha256: the sha256 of the student's weights.
    """
    history = training.state.history
    last = history[-1]
    best = max(history, key=lambda row: row["test/ap"])
    return DetectorRecord(
        **vars(facts),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        steps=training.state.step,
        ap_last=last["test/ap"],
        ap50_last=last.get("test/ap50"),
        ap75_last=last.get("test/ap75"),
        ap_small_last=last.get("test/ap_small"),
        ap_medium_last=last.get("test/ap_medium"),
        ap_large_last=last.get("test/ap_large"),
        ap_best_on_test=best["test/ap"],
        step_best_on_test=int(best["step"]),
        loss_last=last["train/loss"],
        curve={key: [round(row[key], 4) for row in history] for key in CURVE},
        student_sha256=sha256,
        metrics_sha256=hashlib.sha256(lines(history)).hexdigest(),
        cost=costs(training.state, training.run.runtime),
    )
