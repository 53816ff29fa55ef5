"""Training from configurations to finished runs, one by one or side by side."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from kdbench.assembly.build import build_method
from kdbench.assembly.make import make
from kdbench.errors import KdbenchError, RankError
from kdbench.parallel.micro_batches import Cutting
from kdbench.parallel.ranks import Ranks
from kdbench.records.notices import tell
from kdbench.records.settings import Start, TeacherSettings, TrainSettings
from kdbench.records.weights import load_weights
from kdbench.schema.node import Node
from kdbench.system.console import Console
from kdbench.system.files import make_folder
from kdbench.system.hardware import reset_peak_memory
from kdbench.system.precision import notices
from kdbench.system.runtime import Runtime
from kdbench.tasks.dispatch import task_called
from kdbench.tasks.task import Company, Task
from kdbench.tracking.run_logger import MetricsFile, RunLogger
from kdbench.training.cohort import Cohort
from kdbench.training.finish import close_job, write_facts
from kdbench.training.fitting import check_device, check_fit
from kdbench.training.grouping import by_step, check_alike
from kdbench.training.jobs import Job, open_job
from kdbench.training.member import Member
from kdbench.training.pace import AnySchedule
from kdbench.training.schedule import Schedule

TEACHER_SEED = 1000  # of teachers trained first; students of benchmark tables have small seeds


def train(config: TrainSettings) -> Path:
    """Train or resume the run of `config`, unless it is done already; return its folder.

    Raises:
        KdbenchError: something is wrong that the user can mend.
    """
    (outcome,) = train_together([config])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def train_together(configs: Sequence[TrainSettings]) -> list[Path | Exception]:
    """Train or resume these runs side by side, except those that are done already.

    Returns:
        Each run's folder, or the error for which it has no result; a failure leaves the others
        untouched.

    Raises:
        ConfigError: the runs cannot train side by side.
        KdbenchError: something that all of them need is wrong.
        Interrupted: on Ctrl-C, SIGTERM or SIGUSR1; the runs can be resumed.
    """
    runtime: Runtime = make(configs[0].runtime, "runtime")
    kind = task_called(configs[0].task)
    kind.check(runtime)
    runtime.apply()
    ranks, console = runtime.ranks, Console(quiet=not runtime.ranks.first)
    runs_dir = Path(configs[0].runs_dir)
    ranks.by_first(lambda: make_folder(runs_dir))
    configs = [with_teachers(config) for config in configs]
    check_alike(configs)
    data = ranks.in_turn(lambda: make(configs[0].dataset, "dataset"))
    schedule: AnySchedule = make(configs[0].schedule, "schedule")
    task = kind(data, runtime, schedule.precision)
    for line in task.notes:
        console.message(line)
    jobs: list[Job | KdbenchError] = []
    try:
        for config in configs:
            jobs.append(try_job(config, task, runs_dir, console))
        todo = [job for job in jobs if isinstance(job, Job) and not job.done]
        if todo:
            train_jobs(todo, task, console)
    finally:
        for job in jobs:
            if isinstance(job, Job):
                job.release()
    return [job if isinstance(job, Exception) else job.error or job.folder for job in jobs]


def try_job(
    config: TrainSettings, task: Task, runs_dir: Path, console: Console
) -> Job | KdbenchError:
    """Open the job of a configuration, and lock it unless it is done; or return the error."""
    ranks = task.runtime.ranks
    try:
        job = ranks.together(lambda: open_job(config, task.data, runs_dir))
        job.done = ranks.any(job.record is not None)
        if not job.done:
            # The check comes before there is a folder.
            schedule: AnySchedule = make(config.schedule, "schedule")
            cutting(schedule, task.data.images, ranks)
            if isinstance(schedule, Schedule):
                check_device(schedule, task.runtime)
                check_fit(schedule, config.method.name, job.method, task.data)
            ranks.by_first(job.hold)  # another process may have finished it until now
            job.done = ranks.any(job.record is not None)
    except RankError:
        raise
    except KdbenchError as error:
        return error
    if job.record is not None:
        console.message(f"{job.identity.run_id} is done: {job.record.summary}")
    return job


def with_teachers(config: TrainSettings) -> TrainSettings:
    """Return the configuration with the teachers that the method reads, each with its checkpoint.

    Teachers are dropped where the method reads none. A teacher whose checkpoint is "train" is
    trained first, or found trained: it learns from labels alone by the run's own recipe, with a
    seed that is the same for all students. So students share one teacher, and none starts from the
    teacher's initial weights.
    """
    teachers = dict(config.teacher)
    if build_method(config.method, config.seed).num_teachers == 0:
        teachers = {}
    for name, teacher in teachers.items():
        if teacher.checkpoint == "train":
            folder = train(self_teacher(config, teacher))
            teachers[name] = replace(teacher, checkpoint=str(folder))
    return replace(config, teacher=teachers)


def self_teacher(config: TrainSettings, teacher: TeacherSettings) -> TrainSettings:
    """Return the configuration that trains a teacher whose checkpoint is "train"."""
    return replace(
        config,
        method=Node("kdbench.methods.ce.CE", {}, "ce"),
        teacher={},
        student=teacher.network,
        seed=TEACHER_SEED,
        start=None,  # the student's
    )


def train_jobs(jobs: list[Job], task: Task, console: Console) -> None:
    """Train jobs that share data and teachers, each from its newest checkpoint."""
    reset_peak_memory(task.runtime.device)
    files = max((job.files for job in jobs), key=len)
    runs_dir = jobs[0].folder.parent
    teachers = {file.name: task.load_teacher(file, runs_dir, console.message) for file in files}
    for name, teacher in teachers.items():
        say([job for job in jobs if name in {f.name for f in job.files}], teacher.notices, console)
    networks = {name: teacher.network for name, teacher in teachers.items()}
    try:
        for job in jobs:
            try:
                job.member = open_member(job, task, networks, console)
            except RankError:
                raise
            except Exception as error:
                job.error = error
        for members in by_step(job.member for job in jobs if job.member is not None):
            company = company_of(members)
            batches = task.batches(company, files, networks, runs_dir, console.message)
            for member in members:
                if member.method.num_teachers != 0:
                    member.infinite_teachers = batches.infinite_teachers
            Cohort(members, batches, console).train()
            for job in jobs:
                if job.member in members:
                    close_job(job, task, teachers, console)
    finally:
        for job in jobs:
            if job.logger is not None:
                job.logger.finish(1)


def company_of(members: Sequence[Member]) -> Company:
    """Return what the members of one cohort have in common."""
    first = members[0]
    return Company(
        [member.method for member in members],
        first.seed,
        first.schedule,
        first.pace.steps,
        cutting(first.schedule, first.task.data.images, first.runtime.ranks),
    )


def open_member(job: Job, task: Task, teachers: dict[str, nn.Module], console: Console) -> Member:
    """Prepare the job's run to train from its newest checkpoint."""
    config, seed, ranks = job.config, job.config.seed, task.runtime.ranks
    networks = {file.name: teachers[file.name] for file in job.files}
    student = task.build_student(config.student, seed)
    if config.start is not None:
        say([job], start_from(config.start, student, config.student.name), console)
    schedule: AnySchedule = make(config.schedule, "schedule")
    say([job], notices(schedule.precision, task.runtime.device), console)
    student = task.set_up(job.method, student, networks, seed)
    logger: RunLogger = make(config.logger, "logger") if ranks.first else RunLogger()
    loggers = [MetricsFile(job.folder), logger] if ranks.first else []
    what = job.identity.run_id, seed, student, job.method, task, schedule
    member = Member(*what, job.folder, console, loggers)
    member.resume()
    ranks.by_first(lambda: write_facts(job.folder, config, member.exact))
    job.logger = logger
    logger.open(job.identity, job.named, job.folder)
    return member


def start_from(start: Start, student: nn.Module, name: str) -> list[str]:
    """Load a student's initial weights; return lines for the user.

    Raises:
        KdbenchError: the weights belong to another network.
    """
    key, option = start.checkpoint_key, "student.checkpoint_key"
    return load_weights(student, Path(start.checkpoint), name, key, option, new_head=True)


def say(jobs: Sequence[Job], lines: Sequence[str], console: Console) -> None:
    """Show lines about these jobs on the terminal, and to the launcher of their sweep.

    Raises:
        WriteError: a line cannot be written.
    """
    for line in lines:
        console.message(line)
        for job in jobs:
            if console.speaks:
                tell(job.folder, line)


def cutting(schedule: AnySchedule, images: int, ranks: Ranks) -> Cutting:
    """Return the micro-batches of a schedule on a number of training images.

    Raises:
        ConfigError: they do not fit the batches, or the ranks.
    """
    return Cutting(schedule.micro_batches, schedule.batch_size, images, ranks)
