"""A run of `task=detection`, from its configuration to its record."""

from dataclasses import replace
from pathlib import Path

import torch

from kdbench.assembly.build import build_method, check_task, check_teachers
from kdbench.assembly.make import make
from kdbench.errors import ConfigError, KdbenchError, WriteError
from kdbench.methods.base import Method
from kdbench.records.contents import RunFacts
from kdbench.records.identity import identify
from kdbench.records.passport import sha256_of
from kdbench.records.settings import TeacherSettings, TrainSettings
from kdbench.schema.node import Node
from kdbench.seeds import derive
from kdbench.system.console import Console
from kdbench.system.files import make_folder, named_path
from kdbench.system.hardware import reset_peak_memory
from kdbench.system.runtime import Runtime
from kdbench.tasks.detection.coco import DetectionData
from kdbench.tasks.detection.networks import Detector
from kdbench.tasks.detection.recording import describe, finish
from kdbench.tasks.detection.schedule import DetectionSchedule
from kdbench.tasks.detection.scores import need_pycocotools
from kdbench.tasks.detection.teachers import load_teacher, teacher_entry
from kdbench.tasks.detection.training import DetectionRun, Training
from kdbench.teachers.loading import find_teacher
from kdbench.tracking.run_logger import MetricsFile
from kdbench.training.finish import record_failure, write_facts
from kdbench.training.jobs import Job
from kdbench.training.recording import costs
from kdbench.types import Probe


def train_detector(config: TrainSettings) -> Path:
    """Train or resume the run of `config`, unless it is done already; return its folder.

    Raises:
        KdbenchError: something is wrong that the user can mend.
        Interrupted: on Ctrl-C, SIGTERM or SIGUSR1; the run can be resumed.
    """
    need_pycocotools()
    runtime: Runtime = make(config.runtime, "runtime")
    check_runtime(runtime)
    runtime.apply()
    console = Console()
    make_folder(Path(config.runs_dir))
    data: DetectionData = make(config.dataset, "dataset")
    for line in data.notes:
        console.message(line)
    job = open_job(config, data)
    try:
        if job.record is None:
            job.hold()  # another process may have finished it until now
        if job.record is None:
            train_job(job, config, data, runtime, console)
        else:
            console.message(f"{job.identity.run_id} is done: {job.record.summary}")
    finally:
        job.release()
    if job.error is not None:
        raise job.error
    return job.folder


def check_runtime(runtime: Runtime) -> None:
    """Refuse settings that detection does not support.

    Raises:
        ConfigError: names the setting.
    """
    if runtime.ranks.count > 1:
        raise ConfigError("task=detection trains in one process: start it without torchrun")
    if runtime.teacher == "table":
        raise ConfigError(
            "task=detection has no cache of teacher outputs: set runtime.teacher=auto"
        )
    if runtime.compile == "on":
        raise ConfigError("task=detection compiles nothing: set runtime.compile=auto")


def open_job(config: TrainSettings, data: DetectionData) -> Job:
    """Identify a run and find its teacher's file.

    Raises:
        KdbenchError: the method and the teachers do not fit, or a file is missing.
    """
    runs_dir = Path(config.runs_dir)
    method = build_method(config.method, config.seed)
    check_task(config.method, method, "detection")
    teachers = dict(config.teacher) if method.num_teachers else {}
    check_teachers(config.method.name, method, len(teachers))
    files = [find_teacher(name, node, runs_dir) for name, node in teachers.items()]
    sha256 = {file.name: str(file.passport.sha256) for file in files}
    # A student's backbone is identified by its file's content; a teacher's file holds its own.
    own = {name: without_backbone(teacher) for name, teacher in teachers.items()}
    named = replace(config, teacher=own, student=by_content(config.student))
    identity = identify(named, data.name, data.fingerprint, sha256)
    files = [file._replace(network=own[file.name].network) for file in files]
    return Job(named, method, files, identity, runs_dir / identity.run_id)


def without_backbone(teacher: TeacherSettings) -> TeacherSettings:
    """Return a teacher without its backbone's file, which its own weights replace."""
    return replace(teacher, network=teacher.network.having(backbone=None))


def by_content(student: Node) -> Node:
    """Return a student's node with its backbone's file named by content, for the run's hash.

    Raises:
        KdbenchError: the file is missing.
    """
    backbone = student.settings["backbone"]
    if backbone is None:
        return student
    path = named_path(backbone)
    if not path.is_file():
        raise KdbenchError(f"no file {path}: set student.backbone=FILE, or null to start from none")
    return student.having(backbone=f"sha256 {sha256_of(path)}")


def train_job(
    job: Job, config: TrainSettings, data: DetectionData, runtime: Runtime, console: Console
) -> None:
    """Train a job from its newest checkpoint, and write its record.

    Args:
        job: the run and its recorded facts.
        config: the command's configuration, with the paths of files.
        data: the training and test images.
        runtime: the device.
        console: takes the messages.
    """
    reset_peak_memory(runtime.device)
    report, runs_dir = console.message, job.folder.parent
    teachers = [load_teacher(file, data, runtime, runs_dir, report) for file in job.files]
    networks = tuple(network for network, _ in teachers)
    facts = describe(
        job,
        data,
        [teacher_entry(file, s) for file, (_, s) in zip(job.files, teachers, strict=True)],
        runtime,
    )
    student = build_student(config, data)
    set_up(job.method, student, networks, data, config.seed)
    schedule: DetectionSchedule = make(config.schedule, "schedule")
    run = DetectionRun(
        *(job.identity.run_id, config.seed, student, job.method, networks),
        *(data, schedule, runtime, job.folder),
    )
    job.logger = logger = make(config.logger, "logger")
    training = Training(run, console, [MetricsFile(job.folder), logger])
    training.resume()
    write_facts(job.folder, config, training.exact)
    logger.open(job.identity, job.config, job.folder)
    console.message(job.identity.run_id)
    try:
        conclude(job, training, facts, console)
    finally:
        logger.finish(1)  # has no effect after an earlier `finish`


def conclude(job: Job, training: Training, facts: RunFacts, console: Console) -> None:
    """Train, and write the record of a run that is done or has failed."""
    assert job.logger is not None
    try:
        training.train()
        record = finish(job, training, facts)
    except WriteError as error:
        job.error = error
        return
    except Exception as error:
        job.error = error
        record_failure(job, facts, costs(training.state, training.run.runtime), writes=True)
        return
    job.logger.record(record)
    job.logger.finish(0)
    console.message(f"{job.identity.run_id}: {record.summary}; files in {job.folder}")


def build_student(config: TrainSettings, data: DetectionData) -> Detector:
    """Build a student whose initial weights depend on the seed and the backbone's file alone."""
    torch.manual_seed(derive(config.seed, "student"))
    return make(config.student, "network", num_classes=data.num_classes)


def set_up(
    method: Method,
    student: Detector,
    teachers: tuple[Detector, ...],
    data: DetectionData,
    seed: int,
) -> None:
    """Let a method build what it needs from these networks."""
    probes = tuple(teacher.probe() for teacher in teachers)
    none = torch.zeros(0, dtype=torch.int64)  # its samples are proposals, whose number is unknown
    torch.manual_seed(derive(seed, "setup"))
    method.setup(Probe(student.probe(), probes, data.num_classes, none))
