"""The plan of a sweep: which of its runs are done, named twice, to train, or hopeless."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.assembly.make import make
from kdbench.errors import KdbenchError
from kdbench.records.checkpoint import checkpoint_paths
from kdbench.records.identity import canonical, teacher_label
from kdbench.records.settings import TrainSettings
from kdbench.schema.node import Node
from kdbench.training.grouping import group_alike, reads_teachers
from kdbench.training.jobs import Job, open_job
from kdbench.training.together import self_teacher


class Failure(NamedTuple):
    """A run without a result."""

    name: str
    reason: str  # one line


@dataclass
class Plan:
    """A sweep's runs by status, each run once."""

    todo: list[Job] = field(default_factory=list)
    done: int = 0
    repeated: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def total(self) -> int:
        """The number of runs, each counted once."""
        return len(self.todo) + self.done + len(self.failures)

    @property
    def resumed(self) -> int:
        """The number of runs that resume from a checkpoint."""
        return sum(bool(checkpoint_paths(job.folder)) for job in self.todo)

    def describe(self) -> str:
        """Return the plan in one line."""
        new = len(self.todo) - self.resumed
        counts = {
            "done before": self.done,
            "go on from a checkpoint": self.resumed,
            "to train": new,
            "cannot be trained": len(self.failures),
            "named twice": self.repeated,
        }
        parts = ", ".join(f"{count} {words}" for words, count in counts.items() if count)
        return f"{runs(self.total)}: {parts}"


def runs(count: int) -> str:
    """Return a number of runs in words."""
    return f"{count} run" if count == 1 else f"{count} runs"


def plan(configs: Sequence[TrainSettings], recorded: Collection[str] = ()) -> Plan:
    """Identify every run and read its status from its folder.

    Teachers that are to be trained first must be done by now: see `teachers_first`.

    Args:
        configs: the runs' configurations.
        recorded: names of runs that are done elsewhere.
    """
    found, seen = Plan(), set()
    datasets: dict[str, Any] = {}
    for config in configs:
        runs_dir = Path(config.runs_dir)
        try:
            dataset = load(config.dataset, datasets)
            job = open_job(with_ready_teachers(config, dataset, runs_dir), dataset, runs_dir)
            if job.folder in seen:
                found.repeated += 1
                continue
            seen.add(job.folder)
            if job.record is None and job.identity.run_id not in recorded:
                found.todo.append(job)
            else:
                found.done += 1
        except KdbenchError as error:
            found.failures.append(Failure(label(config), str(error)))
    return found


def load(node: Node, datasets: dict[str, Any]) -> Any:
    """Load the data set of a node, once.

    Raises:
        KdbenchError: it cannot be loaded.
    """
    key = canonical(node.spelt())
    if key not in datasets:
        try:
            datasets[key] = make(node, "dataset")
        except KdbenchError as error:
            datasets[key] = error
    dataset = datasets[key]
    if isinstance(dataset, KdbenchError):
        raise dataset
    return dataset


def teachers_first(configs: Sequence[TrainSettings]) -> list[TrainSettings]:
    """Return the runs that train teachers, for configurations with the checkpoint "train"."""
    return [
        self_teacher(config, teacher)
        for config in configs
        for teacher in config.teacher.values()
        if teacher.checkpoint == "train" and reads_teachers(config)
    ]


def with_ready_teachers(config: TrainSettings, dataset: Any, runs_dir: Path) -> TrainSettings:
    """Return the configuration with the teachers that the method reads, each with its checkpoint.

    Raises:
        KdbenchError: a teacher that was to be trained first has no result.
    """
    teachers = dict(config.teacher) if reads_teachers(config) else {}
    for name, teacher in teachers.items():
        if teacher.checkpoint == "train":
            before = open_job(self_teacher(config, teacher), dataset, runs_dir)
            if before.record is None:
                raise KdbenchError(f"its teacher {before.identity.run_id} has no result")
            teachers[name] = replace(teacher, checkpoint=str(before.folder))
    return replace(config, teacher=teachers)


def label(config: TrainSettings) -> str:
    """Return a name for a run that could not be identified."""
    teachers = [teacher_label(name, one.network) for name, one in config.teacher.items()]
    names = [config.dataset.name, "+".join(teachers) or "none", config.student.name]
    return "-".join([*names, config.method.name, f"s{config.seed}"])


def cohorts(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """Group the jobs that train side by side, at most `size` in a group."""
    by_config = {canonical(job.config.spelt()): job for job in jobs}
    groups = group_alike([job.config for job in jobs], size)
    return [[by_config[canonical(config.spelt())] for config in group] for group in groups]
