"""The contents of a record, as its readers need them: tables, the page, comparisons and W&B."""

from dataclasses import dataclass, field
from typing import Literal

from kdbench.records.fields import FLAT, WRITTEN, Part
from kdbench.records.settings import TaskName
from kdbench.records.task_kinds import TASKS, Task
from kdbench.schema.node import Node

LONGEST = 200  # bytes of a name; file systems take 255, with an ending
Curve = dict[str, list[float]]  # a line for each score, a value for each row of the metrics


@dataclass(frozen=True, kw_only=True)
class RecordedTeacher(Part):
    """A teacher's settings; the sha256 of its weights is in the teacher's own entry."""

    network: Node
    checkpoint_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class RecordedSettings(Part):
    """A run's configuration without paths of files, which do not affect its results."""

    method: Node
    student: Node
    schedule: Node
    runtime: Node | None = None
    seed: int
    task: TaskName = "classification"
    start: dict[str, str] | None = None  # what the student's first weights are
    dataset: Node
    teacher: dict[str, RecordedTeacher]


@dataclass(frozen=True, kw_only=True)
class Data(Part):
    """The data set."""

    name: str
    sha256: str  # its fingerprint
    train: int | None = None  # images
    test: int | None = None
    replaced: int | None = None  # images that could not be read; None where none may be


@dataclass(frozen=True, kw_only=True)
class Hardware(Part):
    """The machine that a run trained on."""

    device: str | None = None
    cpu: str
    cores: int | None = None
    threads: int
    instruction_set: str | None = None
    gpu: str | None = None
    cuda: str | None = None
    ranks: int = 1

    @property
    def label(self) -> str:
        """Return the name of its most expensive device, for people."""
        return self.gpu or f"{self.cpu}, {self.threads} threads"


@dataclass(frozen=True, kw_only=True)
class ClassifierTeacher(Part):
    """A teacher of classifiers: its weights, and what they scored here and by their passport."""

    name: str
    sha256: str
    top1: float | None = field(default=None, metadata=WRITTEN)
    passport_top1: float | None = field(default=None, metadata=WRITTEN)
    source: str | None = field(default=None, metadata=WRITTEN)

    @property
    def score(self) -> float | None:
        """Return its measured top-1, in percent."""
        return self.top1


@dataclass(frozen=True, kw_only=True)
class DetectorTeacher(Part):
    """A teacher of detectors: its weights, and what they scored here and by their passport."""

    name: str
    sha256: str
    ap: float | None
    passport_ap: float | None = field(default=None, metadata=WRITTEN)
    source: str | None = field(default=None, metadata=WRITTEN)

    @property
    def score(self) -> float | None:
        """Return its measured AP, in percent."""
        return self.ap


@dataclass(frozen=True, kw_only=True)
class Costs(Part):
    """The cost of a run over all ranks; None where it was not measured."""

    seconds: float | None = field(default=None, metadata=WRITTEN)
    seconds_share: float | None  # of the time of all that trained beside it
    cpu_seconds: float | None
    gpu_seconds: float | None
    # Of the rank with the highest.
    peak_memory_mb: float | None = field(default=None, metadata=WRITTEN)


@dataclass(frozen=True, kw_only=True)
class RunFacts(Part):
    """The fields of every record that precede its results."""

    format: int
    run_id: str
    cell: str
    hash: str
    seed: int
    config: RecordedSettings
    protocol: str
    data: Data
    commit: str | None
    versions: dict[str, str]
    hardware: Hardware
    teachers: tuple[DetectorTeacher | ClassifierTeacher, ...]
    companions: int | None = None  # runs that trained beside it
    fused: int | None = None  # students that trained as one stacked network, its own included


@dataclass(frozen=True, kw_only=True)
class Record(RunFacts):
    """The small committed file that every number comes from, of a run that has ended."""

    status: Literal["done", "failed"]
    checksum: str = ""  # of its file; "" before it is written

    @property
    def task(self) -> Task:
        """Return what depends on its task."""
        return TASKS[self.config.task]

    @property
    def detects(self) -> bool:
        """Return whether it is a detector's; detectors have tables of their own."""
        return self.config.task == "detection"


@dataclass(frozen=True, kw_only=True)
class FailedRecord(Record):
    """The record of a run without a result."""

    status: Literal["failed"] = field(default="failed", metadata=WRITTEN)
    error: str
    diverged_step: int | None = None
    cost: Costs | None = field(default=None, metadata=FLAT)


@dataclass(frozen=True, kw_only=True)
class DoneRecord(Record):
    """The record of a run with a result."""

    status: Literal["done"] = field(default="done", metadata=WRITTEN)
    finished: str | None = None  # when, in UTC


@dataclass(frozen=True, kw_only=True)
class ClassifierRecord(DoneRecord):
    """The record of a classifier's run; scores are of the test set, in percent."""

    epochs: int
    top1_last: float
    top1_best_on_test: float
    epoch_best_on_test: int | None = None
    top1_last5: float
    top5_last: float | None = None
    loss_last: float | None = None
    curve: Curve | None = None
    top1_val_last: float | None = None
    top1_ema_last: float | None = None  # of the moving average of the weights, where there is one
    ema_sha256: str | None = None  # of its file
    student_sha256: str | None = None
    metrics_sha256: str | None = None
    ece_last: float | None = None
    agreement: dict[str, float] | None = None  # by teacher
    cost: Costs = field(metadata=FLAT)

    @property
    def headline(self) -> float:
        """Return the score that tables compare, in percent."""
        return self.top1_last

    @property
    def best_on_test(self) -> float:
        """Return the best score of all, in percent: chosen on the test set."""
        return self.top1_best_on_test

    @property
    def last5(self) -> float | None:
        """Return the mean score of the last five epochs, in percent."""
        return self.top1_last5

    @property
    def details(self) -> dict[str, float | None]:
        """Return further scores by their column, in percent."""
        return {}

    @property
    def summary(self) -> str:
        """Return its result in a few words."""
        seconds = self.cost.seconds or 0.0
        return f"top-1 {self.top1_last:.2f} after epoch {self.epochs}, {seconds:.0f} s"


@dataclass(frozen=True, kw_only=True)
class DetectorRecord(DoneRecord):
    """The record of a detector's run; COCO's average precisions are in percent.

    An AP is None where there is nothing to score.
    """

    steps: int
    ap_last: float
    ap50_last: float | None
    ap75_last: float | None
    ap_small_last: float | None
    ap_medium_last: float | None
    ap_large_last: float | None
    ap_best_on_test: float
    step_best_on_test: int | None = None
    loss_last: float | None = None
    curve: Curve | None = None
    student_sha256: str | None = None
    metrics_sha256: str | None = None
    cost: Costs = field(metadata=FLAT)

    @property
    def headline(self) -> float:
        """Return the score that tables compare, in percent."""
        return self.ap_last

    @property
    def best_on_test(self) -> float:
        """Return the best score of all, in percent: chosen on the test set."""
        return self.ap_best_on_test

    @property
    def last5(self) -> float | None:
        """Return None: scores may be far apart."""
        return None

    @property
    def details(self) -> dict[str, float | None]:
        """Return further scores by their column, in percent."""
        by_overlap = {"AP50": self.ap50_last, "AP75": self.ap75_last}
        by_size = {"AP small": self.ap_small_last, "AP medium": self.ap_medium_last}
        return {**by_overlap, **by_size, "AP large": self.ap_large_last}

    @property
    def summary(self) -> str:
        """Return its result in a few words."""
        seconds = self.cost.seconds or 0.0
        return f"AP {self.ap_last:.2f} after step {self.steps}, {seconds:.0f} s"


Done = ClassifierRecord | DetectorRecord
