"""Classification as the training engine sees it."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.assembly.build import build_network, set_up
from kdbench.assembly.evaluation import Scores, evaluate, evaluate_together
from kdbench.data.augmentation.views import TrainImages
from kdbench.data.base import Dataset, Split
from kdbench.data.streaming.streamed import StreamedImages, images_of
from kdbench.methods.base import Method
from kdbench.records.contents import ClassifierRecord, ClassifierTeacher, Data
from kdbench.records.passport import Passport
from kdbench.schema.node import Node
from kdbench.system.precision import Precision, at_precision
from kdbench.system.runtime import Runtime
from kdbench.tasks.classification.batches import SharedBatches
from kdbench.tasks.classification.losses import losses_and_sums, losses_of_output
from kdbench.tasks.task import (
    Batches,
    Company,
    Ending,
    LossesOfOutput,
    Measured,
    Rehearsal,
    Report,
    Row,
    Sums,
    Task,
)
from kdbench.teachers.loading import Teacher, TeacherFile, load_teacher
from kdbench.teachers.outputs import Use, choose_outputs, uncached
from kdbench.types import Batch, Losses, Network, Output

SCORED = ("top1", "top5", "loss", "entropy")  # of every split, in a row
FINAL_ROWS = 5  # a record keeps the mean top-1 of this many last rows


class Classification(Task):
    """Classification of images; rows have top-1, top-5, loss and entropy of each split."""

    name = "classification"
    record = ClassifierRecord
    taught_by = ClassifierTeacher
    curve = ("train/loss", "train/top1", "test/top1")
    shown: ClassVar[Mapping[str, str]] = {"train/top1": "train top-1", "test/top1": "test top-1"}

    data: Dataset

    @cached_property
    def cut(self) -> TrainImages | StreamedImages:
        """The training images, of which views are cut."""
        return images_of(self.data, self.runtime.device)

    @cached_property
    def scored(self) -> dict[str, Split]:
        """The splits that are scored."""
        others = {name: split for name, split in self.data.splits.items() if name != "train"}
        return {name: at_hand(split, self.runtime.device) for name, split in others.items()}

    @staticmethod
    def caches(method: Method, data: Dataset, schedule: Any) -> bool:
        """Return whether an output cache can hold all that a method reads of its teachers."""
        return not uncached([method], data.views, schedule.changes_images)

    def build_network(self, node: Node) -> nn.Module:
        """Build a network for the data set's classes and channels.

        Raises:
            ConfigError: it cannot take images of the data set's size.
        """
        return build_network(node, self.data)

    def set_up(
        self, method: Method, student: nn.Module, teachers: Mapping[str, nn.Module], seed: int
    ) -> nn.Module:
        """Let a method build what it needs from these networks; return the network to train."""
        return set_up(method, student, teachers, self.data, seed)

    def network(self, student: nn.Module) -> nn.Module:
        """Return the student as its run calls it, at the run's precision."""
        return at_precision(student, self.precision)

    def batch_shape(self, size: int) -> torch.Size:
        """Return the shape [B, C, H, W] of a batch."""
        return torch.Size((size, *self.data.train.images.shape[1:]))

    def load_teacher(self, file: TeacherFile, runs_dir: Path, report: Report) -> Teacher:
        """Load a frozen teacher, and measure its accuracy the first time.

        Raises:
            KdbenchError: it cannot teach.
        """
        return load_teacher(file, self.data, self.runtime, runs_dir, report)

    def scores_of(self, teacher: Teacher, passport: Passport) -> Mapping[str, Any]:
        """Return a teacher's top-1 as measured, and as its passport says."""
        return {"top1": teacher.top1, "passport_top1": passport.top1}

    def batches(
        self,
        company: Company,
        files: Sequence[TeacherFile],
        teachers: Mapping[str, nn.Module],
        runs_dir: Path,
        report: Report,
    ) -> Batches:
        """Return the batches of a cohort, with teacher outputs live or from the cache."""
        epochs = company.steps / -(-self.data.images // company.schedule.batch_size)
        schedule = company.schedule
        table = schedule.table_precision, schedule.changes_images
        use = Use(company.methods, round(epochs), self.precision, *table)
        facts = {file.name: file.cache_facts for file in files}
        given = self.data, self.cut, self.runtime, runs_dir, report
        outputs, infinite = choose_outputs(use, teachers, facts, *given)
        layout = self.runtime.memory_format
        return SharedBatches(company, self.data, self.cut, outputs, infinite, layout)

    def losses(
        self, network: Network, method: Method, batch: Batch, teachers: tuple[Output, ...]
    ) -> tuple[Losses, Sums]:
        """Return the losses to differentiate, and what this batch adds to the sums."""
        return losses_and_sums(network, method, batch, teachers)

    @property
    def losses_of_output(self) -> LossesOfOutput:
        """The part of `losses` that follows the student's forward pass."""
        return losses_of_output

    def training_scores(self, means: Row) -> Row:
        """Return the top-1 on training images, in percent."""
        return {"train/top1": 100 * means.pop("hits")}

    def score(self, networks: Sequence[nn.Module]) -> list[Row | Exception]:
        """Score students on every split but the training set, in one pass over each."""
        rows: list[Row | Exception] = [{} for _ in networks]
        for name, split in self.scored.items():
            where = self.runtime.device, self.runtime.memory_format, self.runtime.ranks
            given = networks, split, self.data, *where, self.precision
            for number, scores in enumerate(evaluate_together(*given)):
                row = rows[number]
                if isinstance(scores, Exception):
                    rows[number] = scores
                elif isinstance(row, dict):
                    row |= {f"{name}/{key}": getattr(scores, key) for key in SCORED}
        return rows

    def evaluate(self, network: nn.Module, split: Split, precision: Precision) -> Scores:
        """Score a network on a split, on all ranks together."""
        where = self.runtime.device, self.runtime.memory_format, self.runtime.ranks
        return evaluate(network, split, self.data, *where, precision)

    def measure(self, network: nn.Module, name: str) -> Measured:
        """Score any network on the test images."""
        scores = self.evaluate(network, self.data.test, "fp32")
        found = {
            "top1": round(scores.top1, 4),
            "top5": round(scores.top5, 4),
            "loss": round(scores.loss, 6) if math.isfinite(scores.loss) else None,
            "n": scores.n,
        }
        odd = f"{name} has outputs that are not finite, for {scores.infinite} of {scores.n} images"
        return Measured([odd] if scores.infinite else [], found)

    def conclude(
        self,
        network: nn.Module,
        student: nn.Module,
        history: Sequence[Row],
        teachers: Mapping[str, Teacher],
    ) -> Ending:
        """Measure calibration and agreement with the teachers on the test set."""
        scores = self.evaluate(network, self.scored["test"], self.precision)
        top1 = history[-1]["test/top1"]
        if self.precision != "fp32":
            top1 = self.evaluate(student, self.scored["test"], "fp32").top1
        agreed = {
            name: agreement(scores.predictions, teacher.predictions)
            for name, teacher in teachers.items()
        }
        measured = {"ece_last": scores.ece, "agreement": agreed}
        return Ending({"top1": top1}, {**scores_of_rows(history), **measured})

    @staticmethod
    def rehearsal(data: Dataset, size: int, runtime: Runtime, precision: Precision) -> Rehearsal:
        """Return the task on a batch of `size` images, to time its parts."""
        from kdbench.tasks.classification.rehearsal import ClassificationRehearsal

        return ClassificationRehearsal(data, size, runtime, precision)

    def data_facts(self) -> Data:
        """Return the data set's entry in a record."""
        told = self.runtime.ranks.exchange(json.dumps(sorted(self.data.replaced or ())))
        replaced = {row for text in told for row in json.loads(text)}
        return Data(
            name=self.data.name,
            sha256=self.data.fingerprint,
            train=self.data.images,
            test=len(self.data.test.labels),
            replaced=None if self.data.replaced is None else len(replaced),
        )


def at_hand(split: Split, device: torch.device) -> Split:
    """Return a split for the scores of every epoch, on the device if it is in memory at all."""
    images = split.images.to(device) if isinstance(split.images, Tensor) else split.images
    return Split(images, split.labels.to(device))


def scores_of_rows(history: Sequence[Row]) -> dict[str, Any]:
    """Return the fields of a record that follow from the rows of a run's epochs."""
    last, final = history[-1], history[-FINAL_ROWS:]
    best = max(history, key=lambda row: row["test/top1"])
    return {
        "epochs": len(history),
        "top1_last": last["test/top1"],
        "top1_best_on_test": best["test/top1"],
        "epoch_best_on_test": int(best["epoch"]),
        "top1_last5": statistics.mean(row["test/top1"] for row in final),
        "top5_last": last["test/top5"],
        "loss_last": last["test/loss"],
        "top1_val_last": last.get("val/top1"),
        "top1_ema_last": last.get("test_ema/top1"),
    }


def agreement(ours: Tensor, theirs: Tensor) -> float:
    """Return the percentage of images on which two networks' predictions [n] agree."""
    return 100 * int((ours == theirs).sum()) / len(ours)
