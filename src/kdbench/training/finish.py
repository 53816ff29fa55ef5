"""The end of a run: its weights, its passport and its record are written."""

import json
import traceback
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from kdbench.errors import DivergedError, KdbenchError, RankError, WriteError, writing
from kdbench.records.checkpoint import checkpoint_paths
from kdbench.records.contents import Costs, Done, FailedRecord, RunFacts
from kdbench.records.identity import teacher_label
from kdbench.records.passport import Passport, beside, sha256_of, write_passport
from kdbench.records.record import RECORD_FILE, write_record
from kdbench.records.reproducibility import EXACT_FILE, Facts
from kdbench.records.settings import TrainSettings
from kdbench.records.weights import EMA_FILE, STUDENT_FILE, save_weights
from kdbench.schema.secrets import masked, masked_node
from kdbench.system.console import Console
from kdbench.system.files import write_atomically
from kdbench.tasks.task import Ending, LoadedTeacher, Task
from kdbench.training.jobs import Job
from kdbench.training.member import Member
from kdbench.training.recording import costs, describe, results


def close_job(job: Job, task: Task, teachers: dict[str, LoadedTeacher], console: Console) -> None:
    """Write the record of a run that has ended, done or failed, on the first rank.

    An error meanwhile is this run's failure alone: the other runs of its cohort close as usual.

    Raises:
        RankError: something went wrong on one rank and not on the others.
    """
    assert job.member is not None
    try:
        record_end(job, task, teachers, console)
    except RankError:
        raise
    except Exception as error:
        if task.runtime.ranks.count > 1 and not isinstance(error, KdbenchError):
            raise  # the error may be on this rank alone
        traceback.clear_frames(error.__traceback__)  # frees the memory that may have run out
        job.error = job.member.error = error
        if job.member.companions:
            console.message(f"{job.identity.run_id} failed: {error}")
        with suppress(Exception):  # the first error is reported, not one of recording it
            if job.record is None and not isinstance(error, WriteError):
                record_end(job, task, teachers, console)


def record_end(job: Job, task: Task, teachers: dict[str, LoadedTeacher], console: Console) -> None:
    """Write the record for `close_job`, which keeps its errors from the other runs."""
    assert job.member is not None
    member = job.member
    facts = describe(job, task, teachers, member)
    cost = costs(member.state, task.runtime)
    if member.error is not None:
        job.error = member.error
        record_failure(job, facts, cost, task.runtime.ranks.first)
        return
    own = {teacher_label(file.name, file.network): teachers[file.name] for file in job.files}
    ending = member.conclude(own)
    task.runtime.ranks.by_first(partial(finish, job, facts, ending, cost, console))


def write_facts(folder: Path, config: TrainSettings, exact: Facts | None) -> None:
    """Write a run's configuration, and under `runtime.exact` its machine's facts, to its folder.

    Raises:
        WriteError: a file cannot be written.
    """
    facts = {"config.json": masked_node(config.spelt())} | ({EXACT_FILE: exact} if exact else {})
    with writing(folder):
        for name, content in facts.items():
            text = json.dumps(content, indent=1) + "\n"
            write_atomically(folder / name, text.encode())


def record_failure(job: Job, facts: RunFacts, cost: Costs, writes: bool) -> None:
    """Write the record of a run that has failed, where this process `writes`."""
    assert job.logger is not None
    failed = FailedRecord(
        **vars(facts),
        error=masked(str(job.error)),
        diverged_step=job.error.step if isinstance(job.error, DivergedError) else None,
        cost=cost,
    )
    if writes:
        with suppress(OSError):  # on a full disk, the error line must suffice
            write_record(failed, job.folder / RECORD_FILE)
    job.logger.record(failed)
    job.logger.finish(1)


def finish(job: Job, facts: RunFacts, ending: Ending, cost: Costs, console: Console) -> None:
    """Write the student with its passport, then the record; "done" is written last.

    Args:
        job: the run.
        facts: the fields of `describe`.
        ending: the measurements at its end.
        cost: of the run.
        console: takes the result in a line.

    Raises:
        WriteError: a file cannot be written.
    """
    assert job.member is not None
    assert job.logger is not None
    with writing(job.folder):
        record = write_results(job.member, facts, ending, cost)
    job.logger.record(record)
    job.logger.finish(0)
    console.message(f"{job.identity.run_id}: {record.summary}; files in {job.folder}")


def write_average(member: Member, student: Passport) -> str | None:
    """Write the moving average of a student's weights with its passport; return its sha256.

    Returns:
        None where the recipe has no average.
    """
    average = member.state.optimizer.ema
    if average is None:
        return None
    weights = member.folder / EMA_FILE
    save_weights(average.module, weights)
    in_fp32 = member.schedule.precision == "fp32"  # as a teacher is measured
    top1 = member.state.history[-1]["test_ema/top1"] if in_fp32 else None
    passport = replace(student, sha256=sha256_of(weights), top1=top1)
    write_passport(passport, beside(weights))
    return passport.sha256


def write_results(member: Member, facts: RunFacts, ending: Ending, cost: Costs) -> Done:
    """Write the files of a run that is done; the arguments are those of `finish`."""
    weights, task = member.folder / STUDENT_FILE, member.task
    save_weights(member.state.student, weights)
    passport = Passport(
        sha256=sha256_of(weights),
        network=facts.config.student.name,
        dataset=task.data.name,
        mean=task.data.mean,
        std=task.data.std,
        source=f"kdbench run {member.run_id}",
        **ending.passport,
    )
    average = write_average(member, passport)
    if average is not None:
        ending = ending._replace(results={**ending.results, "ema_sha256": average})
    record = results(type(task), member.state.history, facts, ending, cost, passport.sha256)
    write_passport(passport, beside(weights))
    write_record(record, member.folder / RECORD_FILE)
    for path in checkpoint_paths(member.folder):
        path.unlink()
    return record
