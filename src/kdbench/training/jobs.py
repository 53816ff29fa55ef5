"""Runs to do: each is identified, and locked while it trains."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdbench.assembly.build import build_method, check_task, check_teachers
from kdbench.errors import KdbenchError, writing
from kdbench.methods.base import Method
from kdbench.records.contents import Done
from kdbench.records.identity import Identity, identify
from kdbench.records.passport import sha256_of
from kdbench.records.record import RECORD_FILE, read_record
from kdbench.records.settings import TrainSettings
from kdbench.records.weights import find_checkpoint
from kdbench.system.files import own_folder, remove_leftovers
from kdbench.system.locks import RunLock
from kdbench.tasks.dispatch import named_by_content
from kdbench.teachers.loading import TeacherFile, find_teacher
from kdbench.tracking.run_logger import RunLogger
from kdbench.training.member import Member


@dataclass
class Job:
    """A run to do: its checked configuration, and everything derived from it before training."""

    config: TrainSettings
    named: TrainSettings  # the same, with files by their content
    method: Method
    files: list[TeacherFile]
    identity: Identity
    folder: Path
    member: Member | None = None
    logger: RunLogger | None = None
    lock: RunLock | None = None
    done: bool = False  # a result exists already
    error: Exception | None = None  # the reason for having no result

    @property
    def record(self) -> Done | None:
        """The run's record, if it is done."""
        path = self.folder / RECORD_FILE
        record = read_record(path) if path.is_file() else None
        return record if isinstance(record, Done) else None

    def hold(self) -> None:
        """Lock the run against other processes, and remove files a killed one left half written.

        Raises:
            KdbenchError: another process trains the run, or its folder is another user's or cannot
                be written.
        """
        with writing(self.folder):
            own_folder(self.folder)
            self.lock = RunLock(self.folder)
            remove_leftovers(self.folder)

    def release(self) -> None:
        """Release the lock."""
        if self.lock is not None:
            self.lock.release()


def open_job(config: TrainSettings, data: Any, runs_dir: Path) -> Job:
    """Identify a run on a data set, and find its teachers' files.

    Raises:
        KdbenchError: the method and the teachers do not fit, or a checkpoint is missing.
    """
    method = build_method(config.method, config.seed)
    check_task(config.method, method, config.task)
    check_teachers(config.method.name, method, len(config.teacher))
    files = [find_teacher(name, node, runs_dir) for name, node in config.teacher.items()]
    config = with_start(config, runs_dir)
    named = named_by_content(config)
    files = [file._replace(network=named.teacher[file.name].network) for file in files]
    sha256 = {file.name: str(file.passport.sha256) for file in files}
    identity = identify(named, data.name, data.fingerprint, sha256)
    return Job(config, named, method, files, identity, runs_dir / identity.run_id)


def with_start(config: TrainSettings, runs_dir: Path) -> TrainSettings:
    """Return the configuration with the sha256 of its student's initial weights, if it names any.

    Raises:
        KdbenchError: the weights are missing.
    """
    if config.start is None:
        return config
    try:
        path = find_checkpoint(config.start.checkpoint, runs_dir)
    except KdbenchError as error:
        raise KdbenchError(f"{error}. Set student.checkpoint=FILE") from None
    start = replace(config.start, checkpoint=str(path), sha256=sha256_of(path))
    return replace(config, start=start)
