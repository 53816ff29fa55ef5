"""Who trains with whom: runs that can share batches and teachers, and what keeps others apart."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.assembly.build import build_method, check_task, check_teachers
from kdbench.config.run_config import Config
from kdbench.data.base import Dataset
from kdbench.errors import ConfigError, writing
from kdbench.methods.base import Method
from kdbench.records.identity import Identity, canonical, identify
from kdbench.records.record import RECORD_FILE, Record, read_record
from kdbench.system.files import remove_leftovers
from kdbench.system.locks import RunLock
from kdbench.teachers.loading import TeacherFile, find_teacher
from kdbench.tracking.run_logger import RunLogger
from kdbench.training.member import Member

SHARED = ("dataset", "runtime", "seed", "runs_dir")  # equal for all, besides teachers and:
SHARED_SCHEDULE = ("epochs", "batch_size", "micro_batches", "precision", "table_precision")


@dataclass
class Job:
    """A run to do: its checked configuration, and what follows from it before any training."""

    config: Config
    method: Method
    files: list[TeacherFile]
    identity: Identity
    folder: Path
    member: Member | None = None
    logger: RunLogger | None = None
    lock: RunLock | None = None
    done: bool = False  # whether it has a result already
    error: Exception | None = None  # why it has no result

    @property
    def record(self) -> Record | None:
        """The run's record if it is done."""
        path = self.folder / RECORD_FILE
        record = read_record(path) if path.is_file() else None
        return record if record is not None and record["status"] == "done" else None

    def hold(self) -> None:
        """Keep other processes from the run, and clear what a killed one left half written.

        Raises:
            KdbenchError: another process trains it, or its folder cannot be written.
        """
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            self.lock = RunLock(self.folder)
            remove_leftovers(self.folder)

    def release(self) -> None:
        """Let other processes have the run."""
        if self.lock is not None:
            self.lock.release()


def open_job(config: Config, dataset: Dataset, runs_dir: Path) -> Job:
    """Identify a run and find its teachers' files.

    Raises:
        KdbenchError: the method and the teachers do not fit, or a checkpoint is not there.
    """
    method = build_method(config["method"], config["seed"])
    check_task(config["method"], method, "classification")
    check_teachers(config["method"], method, list(config["teacher"]))
    files = [find_teacher(name, node, runs_dir) for name, node in config["teacher"].items()]
    sha256 = {file.name: str(file.passport.sha256) for file in files}
    identity = identify(config, dataset.name, dataset.fingerprint, sha256)
    return Job(config, method, files, identity, runs_dir / identity.run_id)


def check_alike(configs: Sequence[Config]) -> None:
    """Refuse runs that cannot train side by side.

    Raises:
        ConfigError: names the first key that differs.
    """
    for key in SHARED:
        _check_one(key, (config[key] for config in configs))
    for key in SHARED_SCHEDULE:
        _check_one(f"schedule.{key}", (config["schedule"][key] for config in configs))
    _check_one("teacher", (config["teacher"] for config in configs if config["teacher"]))


def group_alike(configs: Sequence[Config], size: int) -> list[list[Config]]:
    """Runs that can train side by side, together in groups of at most `size`, in order."""
    groups: list[list[Config]] = []
    open_groups: dict[str, list[list[Config]]] = {}
    for config in configs:
        seen = {**config, "teacher": config["teacher"] if reads_teachers(config) else {}}
        common = [seen[key] for key in SHARED] + [seen["schedule"][key] for key in SHARED_SCHEDULE]
        beside = open_groups.setdefault(canonical(common), [])
        group = next((one for one in beside if _teachers_fit(one, seen)), None)
        if group is None:
            group = []
            groups.append(group)
            beside.append(group)
        group.append(seen)
        if len(group) == size:
            beside.remove(group)
    return groups


def _teachers_fit(group: Sequence[Config], config: Config) -> bool:
    """Whether a run's teachers are the group's; one that reads none fits everywhere."""
    found = [one["teacher"] for one in (*group, config) if one["teacher"]]
    return all(teacher == found[0] for teacher in found)


def reads_teachers(config: Config) -> bool:
    """Whether the run's method reads any; a run whose method does not is the same beside all."""
    return build_method(config["method"], config["seed"]).num_teachers != 0


def _check_one(key: str, values: Iterable[Any]) -> None:
    found = {canonical(value): value for value in values}
    if len(found) > 1:
        first, second = list(found.values())[:2]
        while isinstance(first, dict) and isinstance(second, dict):
            inner = next(k for k in {**first, **second} if first.get(k) != second.get(k))
            key, first, second = f"{key}.{inner}", first.get(inner), second.get(inner)
        raise ConfigError(
            f"these runs cannot train side by side: {key} differs ({first}, {second})"
        )


def by_step(members: Iterable[Member]) -> list[list[Member]]:
    """Members that have come equally far, the least first: each group is a cohort."""
    groups: dict[int, list[Member]] = {}
    for member in members:
        groups.setdefault(member.position.step, []).append(member)
    return [groups[step] for step in sorted(groups)]
