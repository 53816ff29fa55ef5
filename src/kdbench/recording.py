"""What becomes of a run that has ended: its weights, its passport and its record."""

from datetime import UTC, datetime
from typing import Any

from kdbench.checkpoint import checkpoint_paths
from kdbench.cohorts import Job
from kdbench.console import Console
from kdbench.data.base import Dataset
from kdbench.hardware import hardware, versions
from kdbench.member import Run
from kdbench.passport import Passport, beside, sha256_of, write_passport
from kdbench.record import (
    FORMAT,
    RECORD_FILE,
    Record,
    code_version,
    recorded,
    teacher_label,
    without_names,
    write_record,
)
from kdbench.runtime import Runtime
from kdbench.snapshot import Position
from kdbench.teachers import Teacher, TeacherFile
from kdbench.weights import STUDENT_FILE, save_weights


def close_job(
    job: Job, dataset: Dataset, runtime: Runtime, teachers: dict[str, Teacher], console: Console
) -> None:
    """Write the record of a run that has ended, done or failed."""
    assert job.member is not None
    assert job.logger is not None
    job.logger.finish(int(job.member.error is not None))
    facts = describe(job, dataset, runtime)
    facts["teachers"] = [teacher_facts(file, teachers[file.name]) for file in job.files]
    facts["companions"] = job.member.companions
    if job.member.error is not None:
        job.error = job.member.error
        failed = {**facts, "status": "failed", "error": str(job.error)}
        write_record(failed, job.folder / RECORD_FILE)
        return
    record = finish(job.member.run, facts, job.member.position)
    console.message(f"{job.identity.run_id}: {summary(record)}; files in {job.folder}")


def describe(job: Job, dataset: Dataset, runtime: Runtime) -> Record:
    """What a record says of a run before its results."""
    identity = job.identity
    return {
        "format": FORMAT,
        "run_id": identity.run_id,
        "cell": identity.cell,
        "hash": identity.hash,
        "seed": identity.seed,
        "config": recorded(job.config),
        "data": {
            "name": dataset.name,
            "sha256": dataset.fingerprint,
            "train": len(dataset.train.labels),
            "test": len(dataset.test.labels),
        },
        "commit": code_version(),
        "versions": versions(),
        "hardware": hardware(runtime.device),
    }


def table_facts(file: TeacherFile) -> dict[str, Any]:
    """What names a teacher's table, besides data and device."""
    return {"teacher": file.passport.sha256, "network": without_names(file.node)}


def teacher_facts(file: TeacherFile, teacher: Teacher) -> dict[str, Any]:
    """A teacher's line in a record."""
    passport = file.passport
    return {
        "name": teacher_label(file.name, {"network": file.node}),
        "sha256": passport.sha256,
        "top1": teacher.top1,
        "passport_top1": passport.top1,
        "source": passport.source,
    }


def finish(run: Run, facts: Record, position: Position) -> Record:
    """Write the student with its passport, then the record; "done" is written last."""
    last = position.history[-1]
    best = max(position.history, key=lambda row: row["test/top1"])
    weights = run.folder / STUDENT_FILE
    save_weights(run.student, weights)
    passport = Passport(
        sha256=sha256_of(weights),
        network=facts["config"]["student"]["name"],
        dataset=run.dataset.name,
        mean=run.dataset.mean,
        std=run.dataset.std,
        top1=last["test/top1"],
        source=f"kdbench run {run.run_id}",
    )
    write_passport(passport, beside(weights))
    record: Record = {
        **facts,
        "status": "done",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(position.seconds, 1),
        "epochs": len(position.history),
        "top1_last": last["test/top1"],
        "top1_best_on_test": best["test/top1"],
        "epoch_best_on_test": best["epoch"],
        "top5_last": last["test/top5"],
        "loss_last": last["test/loss"],
        "student_sha256": passport.sha256,
        "curve": {
            key: [round(row[key], 4) for row in position.history]
            for key in ("train/loss", "train/top1", "test/top1")
        },
    }
    if run.dataset.val is not None:
        record["top1_val_last"] = last["val/top1"]
    write_record(record, run.folder / RECORD_FILE)
    for path in checkpoint_paths(run.folder):
        path.unlink()
    return record


def summary(record: Record) -> str:
    """A record's result in a few words."""
    return (
        f"top-1 {record['top1_last']:.2f} after epoch {record['epochs']}, {record['seconds']:.0f} s"
    )
