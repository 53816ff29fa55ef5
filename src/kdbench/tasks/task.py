"""What the training engine asks of a task; all that is not here is the same for every task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from kdbench.methods.base import Method
from kdbench.parallel.micro_batches import Cutting, Part
from kdbench.records.contents import ClassifierTeacher, Data, DetectorTeacher, Done
from kdbench.records.identity import teacher_label
from kdbench.records.passport import Passport
from kdbench.records.settings import TaskName
from kdbench.records.task_kinds import TASKS
from kdbench.schema.node import Node
from kdbench.schema.secrets import masked
from kdbench.seeds import derive
from kdbench.system.precision import Precision
from kdbench.system.runtime import Runtime
from kdbench.teachers.loading import TeacherFile
from kdbench.types import Losses, Network

Row = dict[str, float]  # the metrics of a scored step
Sums = dict[str, Tensor]  # name -> [] float64, summed over images
# A method's batch and its teachers' outputs on it, in the task's own types.
Inputs = Callable[[Method], tuple[Any, Any]]
# The method, a batch, the student's output and the teachers' -> the losses and the batch's sums.
LossesOfOutput = Callable[[Method, Any, Any, Any], tuple[Losses, Sums]]
Report = Callable[[str], None]


class Step(NamedTuple):
    """The batch of one step."""

    images: Tensor  # [B] rows of the images of all ranks, on the device
    parts: Iterator[tuple[Part, Inputs]]  # this rank's micro-batches, made lazily


class Batches(Protocol):
    """The batches of a cohort, with its teachers' outputs."""

    def steps(
        self, first: int, last: int, methods: Sequence[Method], stopped: Callable[[], bool]
    ) -> Iterator[Step]:
        """Yield the steps `first` to `last` - 1 (from 0, over all epochs) for these methods.

        It may end early once `stopped()`.
        """

    def infinite_teachers(self) -> list[str]:
        """Name the teachers whose outputs were not all finite, on any rank."""


class Company(NamedTuple):
    """What the runs of a cohort have in common."""

    methods: Sequence[Method]
    seed: int
    schedule: Any  # of the runs; each task reads what its batches follow from
    steps: int  # of a whole run
    cutting: Cutting


class Measured(NamedTuple):
    """The scores of a network, for people and programs."""

    notices: list[str]  # lines for the user
    scores: dict[str, float | None]  # None: there is nothing to score, or it is not finite


class LoadedTeacher(Protocol):
    """A frozen teacher on the run's device, measured."""

    @property
    def network(self) -> nn.Module:
        """The network, in eval mode."""

    @property
    def notices(self) -> tuple[str, ...]:
        """Lines for the users of the runs that it teaches."""


class Ending(NamedTuple):
    """What a task finds out at a run's end."""

    passport: Mapping[str, Any]  # the headline in fp32, as it is measured before it teaches
    results: Mapping[str, Any]  # the task's own fields of the record


class Task(ABC):
    """A task on its data; what it makes is on the device of `runtime`.

    Args:
        data: the data set, with `name`, `fingerprint`, `mean`, `std`, `images` and `scored`.
        runtime: the device and the ranks.
        precision: that of forward passes.
    """

    name: ClassVar[TaskName]
    record: ClassVar[type[Done]]
    taught_by: ClassVar[type[ClassifierTeacher] | type[DetectorTeacher]]  # a record's entry
    curve: ClassVar[tuple[str, ...]]  # keys of the rows that a record keeps
    shown: ClassVar[Mapping[str, str]]  # words of a row on the terminal: key -> words

    def __init__(self, data: Any, runtime: Runtime, precision: Precision) -> None:
        self.data, self.runtime, self.precision = data, runtime, precision

    @classmethod
    def check(cls, runtime: Runtime) -> None:
        """Refuse what the task does not support, before any slow work.

        Raises:
            ConfigError: names the setting.
        """
        return None

    @staticmethod
    def caches(method: Method, data: Any, schedule: Any) -> bool:
        """Return whether an output cache can hold all that a method reads of its teachers."""
        return False

    @property
    def headline(self) -> str:
        """The key of a row's headline."""
        return TASKS[self.name].headline

    @property
    def notes(self) -> Sequence[str]:
        """Lines for the user on the data."""
        return ()

    @abstractmethod
    def build_network(self, node: Node) -> nn.Module:
        """Build a network for the data.

        Raises:
            ConfigError: it cannot take them.
        """

    def build_student(self, node: Node, seed: int) -> nn.Module:
        """Build a student whose initial weights depend on the seed alone, so methods share them."""
        torch.manual_seed(derive(seed, "student"))
        return self.build_network(node)

    @abstractmethod
    def set_up(
        self, method: Method, student: nn.Module, teachers: Mapping[str, nn.Module], seed: int
    ) -> nn.Module:
        """Let a method build what it needs from these networks; return the network to train."""

    @abstractmethod
    def network(self, student: nn.Module) -> nn.Module:
        """Return the student as its run calls it, at the run's precision."""

    @abstractmethod
    def batch_shape(self, size: int) -> torch.Size | None:
        """Return the shape of every batch of `size` images; None where it is not always one.

        With one shape, a step can be compiled and recorded on a GPU.
        """

    @abstractmethod
    def load_teacher(self, file: TeacherFile, runs_dir: Path, report: Report) -> LoadedTeacher:
        """Load a frozen teacher, and measure it the first time.

        Raises:
            KdbenchError: it cannot teach.
        """

    def teacher_entry(self, file: TeacherFile, teacher: Any) -> ClassifierTeacher | DetectorTeacher:
        """Return a teacher's entry in a record."""
        passport = file.passport
        return self.taught_by(
            name=teacher_label(file.name, file.network),
            sha256=str(passport.sha256),
            source=passport.source and masked(passport.source),
            **self.scores_of(teacher, passport),
        )

    @abstractmethod
    def scores_of(self, teacher: Any, passport: Passport) -> Mapping[str, Any]:
        """Return the scores of a teacher's entry: as measured, and as its passport says."""

    @abstractmethod
    def batches(
        self,
        company: Company,
        files: Sequence[TeacherFile],
        teachers: Mapping[str, nn.Module],
        runs_dir: Path,
        report: Report,
    ) -> Batches:
        """Return the batches of a cohort, taught by these networks."""

    @abstractmethod
    def losses(
        self, network: Network, method: Method, batch: Any, teachers: Any
    ) -> tuple[Losses, Sums]:
        """Return the losses to differentiate, and what this batch adds to the sums."""

    @property
    def losses_of_output(self) -> LossesOfOutput | None:
        """The part of `losses` that follows the student's forward pass.

        None where the pass depends on the method; the part can be compiled by itself, and students
        whose passes are alike can run as one.
        """
        return None

    def training_scores(self, means: Row) -> Row:
        """Take the scores out of the means over training images; return them as a row's."""
        return {}

    @abstractmethod
    def score(self, networks: Sequence[nn.Module]) -> list[Row | Exception]:
        """Score students, on all ranks together.

        Returns:
            Each one's part of a row, or the error that its forward pass raised.

        Raises:
            Exception: that of a forward pass, where there are several ranks.
        """

    @abstractmethod
    def measure(self, network: nn.Module, name: str) -> Measured:
        """Score any network on the test images, which lines for the user call `name`."""

    @abstractmethod
    def conclude(
        self, network: nn.Module, student: nn.Module, history: Sequence[Row], teachers: Any
    ) -> Ending:
        """Measure a run at its end, on all ranks together.

        Args:
            network: the student as its run calls it.
            student: the student alone.
            history: the rows of its scores.
            teachers: its loaded teachers by the name that records have for them.
        """

    @abstractmethod
    def data_facts(self) -> Data:
        """Return the data set's entry in a record, on all ranks together."""

    @staticmethod
    @abstractmethod
    def rehearsal(data: Any, size: int, runtime: Runtime, precision: Precision) -> "Rehearsal":
        """Return the task on a batch of `size` images of its data, to time its parts."""

    def libraries(self) -> dict[str, str]:
        """Return the versions of libraries that only this task depends on."""
        return {}


class LiveTeachers(Protocol):
    """Networks that run on every batch."""

    def outputs(self, batch: Any, /) -> Any:
        """Return all teachers' outputs on a batch."""


class Rehearsal(Task):
    """A task on one batch of its data, and on few images to score, with random teachers."""

    @abstractmethod
    def live(self, teachers: Sequence[nn.Module], report: Report) -> LiveTeachers:
        """Prepare teachers for their forward passes."""

    @abstractmethod
    def batches_with(self, company: Company, live: Any) -> Batches:
        """Return batches with the outputs of `live` on the first one at hand."""
