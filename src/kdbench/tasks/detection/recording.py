"""The end of a detector's run: its weights, its passport and its record are written."""

import hashlib
from datetime import UTC, datetime
from importlib.metadata import version

from kdbench.errors import writing
from kdbench.records.checkpoint import checkpoint_paths
from kdbench.records.passport import Passport, beside, sha256_of, write_passport
from kdbench.records.record import RECORD_FILE, Record, write_record
from kdbench.records.weights import STUDENT_FILE, save_weights
from kdbench.system.runtime import Runtime
from kdbench.tasks.detection.coco import DetectionData
from kdbench.tasks.detection.scores import Scores
from kdbench.tasks.detection.training import Training
from kdbench.tracking.run_logger import lines
from kdbench.training.finish import costs, facts_of
from kdbench.training.jobs import Job
from kdbench.training.snapshot import Row

CURVE = ("step", "train/loss", "test/ap")


def describe(job: Job, data: DetectionData, teachers: list[Record], runtime: Runtime) -> Record:
    """Return the fields of a run's record that precede its results."""
    sizes = {"train": len(data.train), "test": len(data.test.pictures)}
    named = {"name": data.name, "sha256": data.fingerprint, **sizes}
    facts = facts_of(job.identity, job.config, named, runtime)
    facts["versions"]["pycocotools"] = version("pycocotools")
    return {**facts, "teachers": teachers, "companions": 0}


def finish(job: Job, training: Training, facts: Record) -> Record:
    """Write the student with its passport, then the record; "done" is written last.

    Raises:
        WriteError: a file cannot be written.
    """
    with writing(job.folder):
        return _write(training, facts)


def _write(training: Training, facts: Record) -> Record:
    run, history = training.run, training.position.history
    weights = run.folder / STUDENT_FILE
    save_weights(run.student, weights)
    scores = results(history)
    passport = Passport(
        sha256=sha256_of(weights),
        network=facts["config"]["student"]["name"],
        dataset=run.data.name,
        mean=run.data.mean,
        std=run.data.std,
        ap=scores["ap_last"],
        source=f"kdbench run {run.run_id}",
    )
    write_passport(passport, beside(weights))
    record = {
        **facts,
        "status": "done",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "steps": training.position.step,
        **scores,
        "student_sha256": passport.sha256,
        "metrics_sha256": hashlib.sha256(lines(history)).hexdigest(),
        **costs(training.position, run.runtime),
    }
    write_record(record, run.folder / RECORD_FILE)
    for path in checkpoint_paths(run.folder):
        path.unlink()
    return record


def results(history: list[Row]) -> Record:
    """Return a finished run's scores, with those after the last step as headline."""
    last = history[-1]
    best = max(history, key=lambda row: row["test/ap"])
    return {
        **{f"{name}_last": last.get(f"test/{name}") for name in Scores._fields},
        "ap_best_on_test": best["test/ap"],
        "step_best_on_test": best["step"],
        "loss_last": last["train/loss"],
        "curve": {key: [round(row[key], 4) for row in history] for key in CURVE},
    }


def summary(record: Record) -> str:
    """Return a record's result in a few words."""
    return f"AP {record['ap_last']:.2f} after step {record['steps']}, {record['seconds']:.0f} s"
