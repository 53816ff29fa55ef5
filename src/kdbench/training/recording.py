"""The record of a classifier's run, from its results."""

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from kdbench.data.base import Dataset
from kdbench.records.contents import (
    ClassifierRecord,
    ClassifierTeacher,
    Costs,
    Data,
    DetectorTeacher,
    Hardware,
    RecordedSettings,
    RunFacts,
)
from kdbench.records.identity import packages_of, recorded, teacher_label, without_names
from kdbench.records.protocol import protocol_of
from kdbench.records.record import FORMAT, code_version
from kdbench.schema.secrets import masked, masked_node
from kdbench.system.hardware import hardware, peak_memory_mb, versions
from kdbench.system.runtime import Runtime
from kdbench.teachers.loading import Teacher, TeacherFile
from kdbench.tracking.run_logger import lines
from kdbench.training.jobs import Job
from kdbench.training.snapshot import Row, TrainState

NONE: Mapping[str, str] = MappingProxyType({})
FINAL_EPOCHS = 5  # a record keeps the mean top-1 of this many last epochs


class Ending(NamedTuple):
    """The measurements of a run that are made at its end."""

    ece: float  # expected calibration error, percent
    agreement: dict[str, float]  # by teacher, percent of the test images
    cost: Costs
    top1: float  # percent, for the passport


def describe(
    job: Job, dataset: Dataset, runtime: Runtime, teachers: Sequence[ClassifierTeacher]
) -> RunFacts:
    """Return the fields of a run's record that precede its results."""
    assert job.member is not None
    told = runtime.ranks.exchange(json.dumps(sorted(dataset.replaced or ())))
    replaced = {row for text in told for row in json.loads(text)}
    data = Data(
        name=dataset.name,
        sha256=dataset.fingerprint,
        train=len(dataset.train.labels),
        test=len(dataset.test.labels),
        replaced=None if dataset.replaced is None else len(replaced),
    )
    return facts_of(job, data, runtime, teachers, job.member.companions)


def facts_of(
    job: Job,
    data: Data,
    runtime: Runtime,
    teachers: Sequence[ClassifierTeacher | DetectorTeacher],
    companions: int,
    libraries: Mapping[str, str] = NONE,
) -> RunFacts:
    """Return the record fields that every task shares.

    Args:
        job: the run.
        data: the entry of its data set.
        runtime: the device and the ranks of the run.
        teachers: the entries of its teachers.
        companions: the number of runs that trained beside it.
        libraries: versions of the libraries that only its task depends on.
    """
    config = job.config
    return RunFacts(
        format=FORMAT,
        run_id=job.identity.run_id,
        cell=job.identity.cell,
        hash=job.identity.hash,
        seed=job.identity.seed,
        config=RecordedSettings.read(masked_node(recorded(config).spelt())),
        protocol=protocol_of(config.dataset, config.schedule),
        data=data,
        commit=code_version(),
        versions={**versions(), **packages_of(config.spelt()), **libraries},
        hardware=Hardware(**hardware(runtime.device), ranks=runtime.ranks.count),
        teachers=tuple(teachers),
        companions=companions,
    )


def cache_facts(file: TeacherFile) -> dict[str, Any]:
    """Return what identifies a teacher's output cache, besides data and device."""
    key = {} if file.key is None else {"key": file.key}
    network = without_names(file.network.spelt())
    return {"teacher": file.passport.sha256, **key, "network": network}


def teacher_entry(file: TeacherFile, teacher: Teacher) -> ClassifierTeacher:
    """Return a teacher's entry in a record."""
    passport = file.passport
    return ClassifierTeacher(
        name=teacher_label(file.name, file.network),
        sha256=str(passport.sha256),
        top1=teacher.top1,
        passport_top1=passport.top1,
        source=passport.source and masked(passport.source),
    )


def results(
    history: Sequence[Row], facts: RunFacts, ending: Ending, sha256: str | None
) -> ClassifierRecord:
    """Return a finished run's record: the last epoch's scores as headline, and those of all epochs.

    Args:
        history: a row of scores for each epoch.
        facts: the fields of `describe`.
        ending: the measurements at its end.
        sha256: the sha256 of the student's weights.
    """
    last = history[-1]
    best = max(history, key=lambda row: row["test/top1"])
    final = [row["test/top1"] for row in history[-FINAL_EPOCHS:]]
    return ClassifierRecord(
        **vars(facts),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        epochs=len(history),
        top1_last=last["test/top1"],
        top1_best_on_test=best["test/top1"],
        epoch_best_on_test=int(best["epoch"]),
        top1_last5=statistics.mean(final),
        top5_last=last["test/top5"],
        loss_last=last["test/loss"],
        curve={
            key: [round(row[key], 4) for row in history]
            for key in ("train/loss", "train/top1", "test/top1")
        },
        top1_val_last=last.get("val/top1"),
        student_sha256=sha256,
        metrics_sha256=hashlib.sha256(lines(history)).hexdigest(),
        ece_last=ending.ece,
        agreement=ending.agreement,
        cost=ending.cost,
    )


def agreement(ours: Tensor, theirs: Tensor) -> float:
    """Return the percentage of images on which two networks' predictions [n] agree."""
    return 100 * int((ours == theirs).sum()) / len(ours)


def costs(state: TrainState, runtime: Runtime) -> Costs:
    """Return the cost of a run so far, teachers included, over all ranks.

    The peak of memory is that of the rank with the highest.
    """
    ranks = runtime.ranks
    share = round(state.seconds_share, 1)
    peaks = ranks.exchange(str(peak_memory_mb(runtime.device)))
    return Costs(
        seconds=round(state.seconds, 1),
        seconds_share=share,
        cpu_seconds=round(ranks.total(state.cpu_seconds), 1),
        gpu_seconds=share * ranks.count if runtime.device.type == "cuda" else None,
        peak_memory_mb=round(max(map(float, peaks)), 1),
    )
