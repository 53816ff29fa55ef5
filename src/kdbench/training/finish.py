"""The end of a run: its weights, its passport and its record are written."""

import hashlib
import json
import statistics
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from kdbench.assembly.evaluation import evaluate
from kdbench.config.run_config import Config
from kdbench.data.base import Dataset
from kdbench.errors import DivergedError, KdbenchError, RankError, WriteError, writing
from kdbench.records.checkpoint import checkpoint_paths
from kdbench.records.identity import Identity, packages_of, recorded, teacher_label, without_names
from kdbench.records.passport import Passport, beside, sha256_of, write_passport
from kdbench.records.protocol import protocol_of
from kdbench.records.record import FORMAT, RECORD_FILE, Record, code_version, write_record
from kdbench.records.reproducibility import EXACT_FILE, Facts
from kdbench.records.weights import STUDENT_FILE, save_weights
from kdbench.schema.secrets import masked, masked_node
from kdbench.system.console import Console
from kdbench.system.files import write_atomically
from kdbench.system.hardware import hardware, peak_memory_mb, versions
from kdbench.system.runtime import Runtime
from kdbench.teachers.loading import Teacher, TeacherFile
from kdbench.tracking.run_logger import lines
from kdbench.training.jobs import Job
from kdbench.training.member import Member
from kdbench.training.snapshot import Position

FINAL_EPOCHS = 5  # a record keeps the mean top-1 of this many last epochs


def close_job(
    job: Job, dataset: Dataset, runtime: Runtime, teachers: dict[str, Teacher], console: Console
) -> None:
    """Write the record of a run that has ended, done or failed, on the first rank.

    An error meanwhile is this run's failure alone: the other runs of its cohort close as usual.

    Raises:
        RankError: something went wrong on one rank and not on the others.
    """
    assert job.member is not None
    try:
        record_end(job, dataset, runtime, teachers, console)
    except RankError:
        raise
    except Exception as error:
        if runtime.ranks.count > 1 and not isinstance(error, KdbenchError):
            raise  # the error may be on this rank alone
        traceback.clear_frames(error.__traceback__)  # frees the memory that may have run out
        job.error = job.member.error = error
        if job.member.companions:
            console.message(f"{job.identity.run_id} failed: {error}")
        with suppress(Exception):  # the first error is reported, not one of recording it
            if job.record is None and not isinstance(error, WriteError):
                record_end(job, dataset, runtime, teachers, console)


def record_end(
    job: Job, dataset: Dataset, runtime: Runtime, teachers: dict[str, Teacher], console: Console
) -> None:
    """Write the record for `close_job`, which keeps its errors from the other runs."""
    assert job.member is not None
    facts = describe(job, dataset, runtime)
    facts["teachers"] = [teacher_facts(file, teachers[file.name]) for file in job.files]
    facts["companions"] = job.member.companions
    cost = costs(job.member.position, runtime)
    if job.member.error is not None:
        job.error = job.member.error
        record_failure(job, facts, cost, runtime.ranks.first)
        return
    own = {
        teacher_label(file.name, {"network": file.node}): teachers[file.name] for file in job.files
    }
    scores = job.member.score(dataset.test)
    top1 = top1_as_a_teacher(job.member, dataset, runtime)
    agreed = {
        name: agreement(scores.predictions, teacher.predictions) for name, teacher in own.items()
    }
    ending = {"ece_last": scores.ece, "agreement": agreed, **cost}
    runtime.ranks.by_first(partial(finish, job, facts, ending, top1, console))


def write_facts(folder: Path, config: Config, exact: Facts | None) -> None:
    """Write a run's configuration, and under `runtime.exact` its machine's facts, to its folder.

    Raises:
        WriteError: a file cannot be written.
    """
    facts = {"config.json": masked_node(config)} | ({EXACT_FILE: exact} if exact else {})
    with writing(folder):
        for name, content in facts.items():
            text = json.dumps(content, indent=1) + "\n"
            write_atomically(folder / name, text.encode())


def record_failure(job: Job, facts: Record, cost: Record, writes: bool) -> None:
    """Write the record of a run that has failed, where this process `writes`."""
    assert job.logger is not None
    failed = {**facts, "status": "failed", "error": masked(str(job.error))}
    if isinstance(job.error, DivergedError):
        failed["diverged_step"] = job.error.step
    failed |= cost
    if writes:
        with suppress(OSError):  # on a full disk, the error line must suffice
            write_record(failed, job.folder / RECORD_FILE)
    job.logger.record(failed)
    job.logger.finish(1)


def describe(job: Job, dataset: Dataset, runtime: Runtime) -> Record:
    """Return the fields of a run's record that precede its results."""
    told = runtime.ranks.exchange(json.dumps(sorted(dataset.replaced or ())))
    replaced = {row for text in told for row in json.loads(text)}
    data = {
        "name": dataset.name,
        "sha256": dataset.fingerprint,
        "train": len(dataset.train.labels),
        "test": len(dataset.test.labels),
        **({} if dataset.replaced is None else {"replaced": len(replaced)}),
    }
    return facts_of(job.identity, job.config, data, runtime)


def facts_of(identity: Identity, config: Config, data: Record, runtime: Runtime) -> Record:
    """Return the record fields that every task shares; `data` describes the data set."""
    ranks = runtime.ranks
    several = {"ranks": ranks.count} if ranks.count > 1 else {}
    return {
        "format": FORMAT,
        "run_id": identity.run_id,
        "cell": identity.cell,
        "hash": identity.hash,
        "seed": identity.seed,
        "config": masked_node(recorded(config)),
        "protocol": protocol_of(config),
        "data": data,
        "commit": code_version(),
        "versions": {**versions(), **packages_of(config)},
        "hardware": {**hardware(runtime.device), **several},
    }


def cache_facts(file: TeacherFile) -> dict[str, Any]:
    """Return what identifies a teacher's output cache, besides data and device."""
    key = {} if file.key is None else {"key": file.key}
    return {"teacher": file.passport.sha256, **key, "network": without_names(file.node)}


def teacher_facts(file: TeacherFile, teacher: Teacher) -> dict[str, Any]:
    """Return a teacher's entry in a record."""
    passport = file.passport
    return {
        "name": teacher_label(file.name, {"network": file.node}),
        "sha256": passport.sha256,
        "top1": teacher.top1,
        "passport_top1": passport.top1,
        "source": passport.source and masked(passport.source),
    }


def top1_as_a_teacher(member: Member, dataset: Dataset, runtime: Runtime) -> float:
    """Return a student's top-1 as `load_teacher` will measure it: in fp32, for any training."""
    run = member.run
    if run.schedule.precision == "fp32":
        return member.position.history[-1]["test/top1"]
    where = runtime.device, runtime.memory_format, runtime.ranks
    return evaluate(run.student, dataset.test, dataset, *where).top1


def finish(job: Job, facts: Record, ending: Record, top1: float, console: Console) -> None:
    """Write the student with its passport, then the record; "done" is written last.

    Args:
        job: the run.
        facts: the fields of `describe`, and its teachers' entries.
        ending: further scores, and costs.
        top1: the top-1 for the passport, in percent.
        console: takes the result in a line.

    Raises:
        WriteError: a file cannot be written.
    """
    assert job.member is not None
    assert job.logger is not None
    with writing(job.folder):
        record = write_results(job.member, facts, ending, top1)
    job.logger.record(record)
    job.logger.finish(0)
    console.message(f"{job.identity.run_id}: {summary(record)}; files in {job.folder}")


def write_results(member: Member, facts: Record, ending: Record, top1: float) -> Record:
    """Write the files of a run that is done; the arguments are those of `finish`."""
    run = member.run
    weights = run.folder / STUDENT_FILE
    save_weights(run.student, weights)
    record = {**facts, "status": "done", **results(member.position)}
    passport = Passport(
        sha256=sha256_of(weights),
        network=facts["config"]["student"]["name"],
        dataset=run.dataset.name,
        mean=run.dataset.mean,
        std=run.dataset.std,
        top1=top1,
        source=f"kdbench run {run.run_id}",
    )
    write_passport(passport, beside(weights))
    record["student_sha256"] = passport.sha256
    record["metrics_sha256"] = hashlib.sha256(lines(member.position.history)).hexdigest()
    record |= ending
    write_record(record, run.folder / RECORD_FILE)
    for path in checkpoint_paths(run.folder):
        path.unlink()
    return record


def results(position: Position) -> Record:
    """Return a finished run's scores: the last epoch's as headline, and those of all epochs."""
    last = position.history[-1]
    best = max(position.history, key=lambda row: row["test/top1"])
    final = [row["test/top1"] for row in position.history[-FINAL_EPOCHS:]]
    record: Record = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "epochs": len(position.history),
        "top1_last": last["test/top1"],
        "top1_best_on_test": best["test/top1"],
        "epoch_best_on_test": best["epoch"],
        "top1_last5": statistics.mean(final),
        "top5_last": last["test/top5"],
        "loss_last": last["test/loss"],
        "curve": {
            key: [round(row[key], 4) for row in position.history]
            for key in ("train/loss", "train/top1", "test/top1")
        },
    }
    if "val/top1" in last:
        record["top1_val_last"] = last["val/top1"]
    return record


def agreement(ours: Tensor, theirs: Tensor) -> float:
    """Return the percentage of images on which two networks' predictions [n] agree."""
    return 100 * int((ours == theirs).sum()) / len(ours)


def costs(position: Position, runtime: Runtime) -> Record:
    """Return the cost of a run so far, teachers included, over all ranks.

    The peak of memory is that of the rank with the highest.
    """
    ranks = runtime.ranks
    share = round(position.seconds_share, 1)
    peaks = ranks.exchange(str(peak_memory_mb(runtime.device)))
    return {
        "seconds": round(position.seconds, 1),
        "seconds_share": share,
        "cpu_seconds": round(ranks.total(position.cpu_seconds), 1),
        "gpu_seconds": share * ranks.count if runtime.device.type == "cuda" else None,
        "peak_memory_mb": round(max(map(float, peaks)), 1),
    }


def summary(record: Record) -> str:
    """Return a record's result in a few words."""
    return (
        f"top-1 {record['top1_last']:.2f} after epoch {record['epochs']}, {record['seconds']:.0f} s"
    )
