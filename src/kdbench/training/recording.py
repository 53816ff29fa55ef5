"""The record of a run, from its results."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from kdbench.records.contents import Costs, Done, Hardware, RecordedSettings, RunFacts
from kdbench.records.identity import packages_of, recorded
from kdbench.records.protocol import protocol_of
from kdbench.records.record import FORMAT, code_version
from kdbench.schema.secrets import masked_node
from kdbench.system.hardware import hardware, peak_memory_mb, versions
from kdbench.system.runtime import Runtime
from kdbench.tasks.task import Ending, LoadedTeacher, Row, Task
from kdbench.tracking.run_logger import lines
from kdbench.training.jobs import Job
from kdbench.training.member import Member
from kdbench.training.snapshot import TrainState


def describe(job: Job, task: Task, teachers: dict[str, LoadedTeacher], member: Member) -> RunFacts:
    """Return the fields of a run's record that precede its results, on all ranks together.

    Args:
        job: the run.
        task: its task.
        teachers: the loaded teachers by name.
        member: the run in its cohort.
    """
    config, runtime = job.named, task.runtime
    return RunFacts(
        format=FORMAT,
        run_id=job.identity.run_id,
        cell=job.identity.cell,
        hash=job.identity.hash,
        seed=job.identity.seed,
        config=RecordedSettings.read(masked_node(recorded(config).spelt())),
        protocol=protocol_of(config.dataset, config.schedule),
        data=task.data_facts(),
        commit=code_version(),
        versions={**versions(), **packages_of(config.spelt()), **task.libraries()},
        hardware=Hardware(**hardware(runtime.device), ranks=runtime.ranks.count),
        teachers=tuple(task.teacher_entry(file, teachers[file.name]) for file in job.files),
        companions=member.companions,
        fused=member.fused,
    )


def results(
    task: type[Task],
    history: Sequence[Row],
    facts: RunFacts,
    ending: Ending,
    cost: Costs,
    sha256: str | None,
) -> Done:
    """Return a finished run's record.

    Args:
        task: the kind of its task.
        history: a row for each score.
        facts: the fields of `describe`.
        ending: the results of the task.
        cost: of the run.
        sha256: the sha256 of the student's weights.
    """
    return task.record(
        **vars(facts),
        **ending.results,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        curve={key: [round(row[key], 4) for row in history] for key in task.curve},
        student_sha256=sha256,
        metrics_sha256=hashlib.sha256(lines(history)).hexdigest(),
        cost=cost,
    )


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
