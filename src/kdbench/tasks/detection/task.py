"""Detection as the training engine sees it."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from kdbench.assembly.make import make
from kdbench.errors import ConfigError
from kdbench.methods.base import Method
from kdbench.records.contents import Data, DetectorRecord, DetectorTeacher
from kdbench.records.passport import Passport
from kdbench.schema.node import Node
from kdbench.seeds import derive
from kdbench.system.precision import Precision, mixed
from kdbench.system.runtime import Runtime
from kdbench.tasks.detection.batches import DetectionBatch, SharedBatches
from kdbench.tasks.detection.coco import DetectionData
from kdbench.tasks.detection.frozen import LiveDetectors, Taught
from kdbench.tasks.detection.losses import losses_and_sums
from kdbench.tasks.detection.networks import Detector
from kdbench.tasks.detection.scores import evaluate, need_pycocotools
from kdbench.tasks.detection.teachers import Teacher, load_teacher
from kdbench.tasks.task import (
    Batches,
    Company,
    Ending,
    Measured,
    Rehearsal,
    Report,
    Row,
    Sums,
    Task,
)
from kdbench.teachers.loading import TeacherFile
from kdbench.types import Losses, Probe


class Detection(Task):
    """Detection of objects by Faster R-CNNs; rows have COCO's average precisions."""

    name = "detection"
    record = DetectorRecord
    taught_by = DetectorTeacher
    curve = ("step", "train/loss", "test/ap")
    shown: ClassVar[Mapping[str, str]] = {"test/ap": "AP"}

    data: DetectionData

    @classmethod
    def check(cls, runtime: Runtime) -> None:
        """Refuse what detection does not support, before any slow work.

        Raises:
            ConfigError: names the setting, or the package that is missing.
        """
        need_pycocotools()
        if runtime.teacher == "table":
            raise ConfigError(
                "task=detection has no cache of teacher outputs: set runtime.teacher=auto"
            )
        if runtime.compile == "on":
            raise ConfigError("task=detection compiles nothing: set runtime.compile=auto")

    @property
    def notes(self) -> Sequence[str]:
        """Lines for the user on the data."""
        return self.data.notes

    def build_network(self, node: Node) -> Detector:
        """Build a detector for the data's classes."""
        return make(node, "network", num_classes=self.data.num_classes)

    def set_up(
        self, method: Method, student: nn.Module, teachers: Mapping[str, nn.Module], seed: int
    ) -> nn.Module:
        """Let a method build what it needs from these networks; return the student."""
        probes = [one.probe() for one in (student, *teachers.values()) if isinstance(one, Detector)]
        none = torch.zeros(0, dtype=torch.int64)  # its samples are proposals, of unknown number
        torch.manual_seed(derive(seed, "setup"))
        method.setup(Probe(probes[0], tuple(probes[1:]), self.data.num_classes, none))
        return student

    def network(self, student: nn.Module) -> nn.Module:
        """Return the student itself: `losses` and `score` choose the precision."""
        return student

    def batch_shape(self, size: int) -> None:
        """Return None: images have many shapes."""

    def load_teacher(self, file: TeacherFile, runs_dir: Path, report: Report) -> Teacher:
        """Load a frozen teacher, and measure its scores the first time.

        Raises:
            KdbenchError: it cannot teach.
        """
        return load_teacher(file, self.data, self.runtime, runs_dir, report)

    def scores_of(self, teacher: Teacher, passport: Passport) -> Mapping[str, Any]:
        """Return a teacher's AP as measured, and as its passport says."""
        return {"ap": teacher.scores.ap, "passport_ap": passport.ap}

    def batches(
        self,
        company: Company,
        files: Sequence[TeacherFile],
        teachers: Mapping[str, nn.Module],
        runs_dir: Path,
        report: Report,
    ) -> Batches:
        """Return the batches of a cohort; the teachers' maps are computed once for all its runs."""
        live = LiveDetectors(teachers, self.precision)

        def infinite() -> list[str]:
            found = live.frozen.items()
            return [name for name, one in found if self.runtime.ranks.any(one.was_infinite())]

        where = self.runtime.device, self.runtime.memory_format
        return SharedBatches(company, self.data, live, infinite, *where)

    def losses(
        self, network: Any, method: Method, batch: DetectionBatch, teachers: tuple[Taught, ...]
    ) -> tuple[Losses, Sums]:
        """Return the losses to differentiate, and what this batch adds to the sums."""
        with mixed(self.precision, self.runtime.device):
            return losses_and_sums(network, method, batch, teachers)

    def score(self, networks: Sequence[nn.Module]) -> list[Row | Exception]:
        """Score students on the test images; without objects the AP is 0."""
        rows: list[Row | Exception] = []
        for network in networks:
            assert isinstance(network, Detector)
            try:
                scores = evaluate(network, self.data, self.runtime, self.precision)
            except Exception as error:
                if self.runtime.ranks.count > 1:
                    raise
                rows.append(error)
                continue
            row = {f"test/{name}": v for name, v in scores._asdict().items() if v is not None}
            rows.append({**row, "test/ap": row.get("test/ap", 0.0)})
        return rows

    def measure(self, network: nn.Module, name: str) -> Measured:
        """Score any network on the test images."""
        assert isinstance(network, Detector)
        scores = evaluate(network, self.data, self.runtime)._asdict()
        found = {key: None if v is None else round(v, 4) for key, v in scores.items()}
        return Measured([], {**found, "n": self.data.scored})

    def conclude(
        self,
        network: nn.Module,
        student: nn.Module,
        history: Sequence[Row],
        teachers: Mapping[str, Teacher],
    ) -> Ending:
        """Return the scores after the last step."""
        assert isinstance(student, Detector)
        ap = history[-1]["test/ap"]
        if self.precision != "fp32":
            ap = evaluate(student, self.data, self.runtime).ap or 0.0
        return Ending({"ap": ap}, scores_of_rows(history))

    def data_facts(self) -> Data:
        """Return the data set's entry in a record."""
        data = self.data
        return Data(name=data.name, sha256=data.fingerprint, train=data.images, test=data.scored)

    def libraries(self) -> dict[str, str]:
        """Return the version of the library that scores."""
        return {"pycocotools": version("pycocotools")}

    @staticmethod
    def rehearsal(
        data: DetectionData, size: int, runtime: Runtime, precision: Precision
    ) -> Rehearsal:
        """Return the task on a batch of `size` images, to time its parts."""
        from kdbench.tasks.detection.rehearsal import DetectionRehearsal

        return DetectionRehearsal(data, size, runtime, precision)


def scores_of_rows(history: Sequence[Row]) -> dict[str, Any]:
    """Return the fields of a record from the rows of a run's scores: the last is the headline."""
    last, best = history[-1], max(history, key=lambda row: row["test/ap"])
    return {
        "steps": int(last["step"]),
        "ap_last": last["test/ap"],
        "ap50_last": last.get("test/ap50"),
        "ap75_last": last.get("test/ap75"),
        "ap_small_last": last.get("test/ap_small"),
        "ap_medium_last": last.get("test/ap_medium"),
        "ap_large_last": last.get("test/ap_large"),
        "ap_best_on_test": best["test/ap"],
        "step_best_on_test": int(best["step"]),
        "loss_last": last["train/loss"],
    }
