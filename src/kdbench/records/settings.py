"""The settings of a training run and of what starts from a finished one, complete and checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kdbench.records.passport import Passport
from kdbench.schema.node import Node

TaskName = Literal["classification", "detection"]
NODES = ("method", "student", "dataset", "schedule", "runtime", "logger")


@dataclass(frozen=True)
class TeacherSettings:
    """A teacher: its network and the path of its weights."""

    network: Node
    checkpoint: str | None  # a file, a run's folder or name, or "train"
    passport: Passport | None  # what the user knows of the file
    checkpoint_key: str | None = None  # which of several sets of weights in the file
    allow_chance: bool = False  # whether it may teach though it scores as guessing does

    @classmethod
    def read(cls, spelt: Mapping[str, Any]) -> "TeacherSettings":
        """Read what `spelt` returned."""
        passport = spelt["passport"]
        return cls(
            **{
                **spelt,
                "network": Node.read(spelt["network"]),
                "passport": None if passport is None else Passport(**passport),
            }
        )

    def spelt(self) -> dict[str, Any]:
        """Return plain JSON; keys that not every teacher has are left out at their defaults."""
        further = {"checkpoint_key": self.checkpoint_key, "allow_chance": self.allow_chance}
        return {
            "network": self.network.spelt(),
            "checkpoint": self.checkpoint,
            "passport": None if self.passport is None else self.passport.stated(),
            **{key: value for key, value in further.items() if value not in (None, False)},
        }


@dataclass(frozen=True)
class Start:
    """The weights that a student starts from."""

    checkpoint: str  # a file, a run's folder or name
    checkpoint_key: str | None = None  # which of several sets of weights in the file
    sha256: str | None = None  # of the file, once it is found

    def spelt(self) -> dict[str, str]:
        """Return plain JSON, without nulls."""
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class TrainSettings:
    """A training run's configuration, complete and checked."""

    method: Node
    teacher: Mapping[str, TeacherSettings]  # by the name that the user gave it
    student: Node
    dataset: Node
    schedule: Node
    runtime: Node
    logger: Node
    seed: int
    runs_dir: str
    task: TaskName = "classification"
    start: Start | None = None  # None: from random weights

    @classmethod
    def read(cls, spelt: Mapping[str, Any]) -> "TrainSettings":
        """Read what `spelt` returned, as a process gets it through a pipe."""
        nodes = {key: Node.read(spelt[key]) for key in NODES}
        teachers = {name: TeacherSettings.read(one) for name, one in spelt["teacher"].items()}
        start = Start(**spelt["start"]) if "start" in spelt else None
        return cls(**{**spelt, **nodes, "teacher": teachers, "start": start})

    def spelt(self) -> dict[str, Any]:
        """Return plain JSON; task and start are left out at their defaults."""
        found: dict[str, Any] = {
            "method": self.method.spelt(),
            "teacher": {name: one.spelt() for name, one in self.teacher.items()},
            "student": self.student.spelt(),
            "dataset": self.dataset.spelt(),
            "schedule": self.schedule.spelt(),
            "runtime": self.runtime.spelt(),
            "logger": self.logger.spelt(),
            "seed": self.seed,
            "runs_dir": self.runs_dir,
        }
        if self.task != "classification":
            found["task"] = self.task
        if self.start is not None:
            found["start"] = self.start.spelt()
        return found


@dataclass(frozen=True)
class EvaluateSettings:
    """An evaluation's configuration, complete and checked."""

    student: Node
    dataset: Node
    runtime: Node
    checkpoint: str | None  # a file, a run's folder or name
    checkpoint_key: str | None
    runs_dir: str
    task: TaskName = "classification"


@dataclass(frozen=True)
class AnalyseSettings:
    """An analysis' configuration, complete and checked."""

    runs: Sequence[str]  # runs, cells, folders of runs, NETWORK:FILE
    what: Sequence[str]  # measures
    dataset: Node | None  # of checkpoints; None: that of the runs beside them
    transfer: Node | None  # the data set that features are probed on
    corrupted: str | None  # a folder like CIFAR-100-C
    runtime: Node
    root: str | None  # where the data lie now; None: where the runs found them
    teacher_file: str | None  # the same of the teachers' file
    out: str
    runs_dir: str


@dataclass(frozen=True)
class ExportSettings:
    """An export's configuration, complete and checked."""

    run: str | None  # a run, or NETWORK:FILE
    format: str
    keys: str  # the code base whose keys weights get
    pixels: bool  # uint8 in, probabilities out
    opset: int
    licence: str | None  # of the weights
    dataset: Node | None
    root: str | None
    out: str
    runs_dir: str
