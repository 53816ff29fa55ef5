"""The networks of an analysis: students with their teachers, and what they answer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.assembly.evaluation import BATCH
from kdbench.assembly.finished import Shelf, Source, build_finished, find_sources
from kdbench.data.augmentation.views import normalise
from kdbench.data.base import Dataset, Split
from kdbench.errors import ConfigError, KdbenchError
from kdbench.records.contents import ClassifierTeacher, DetectorTeacher
from kdbench.records.passport import check_top1
from kdbench.schema.node import Node
from kdbench.system.precision import arithmetic
from kdbench.system.runtime import Runtime
from kdbench.teachers.loading import find_teacher, load_teacher
from kdbench.types import Output

Report = Callable[[str], None]


@dataclass
class Subject:
    """A student, its data and its teachers, on the device; what it answers is kept."""

    name: str  # in figures and tables
    source: Source
    dataset: Dataset
    network: nn.Module
    teachers: dict[str, nn.Module]  # its own, or those that it is compared with
    device: torch.device
    logits: np.ndarray  # [n, K] float64, of the test images
    teacher_logits: np.ndarray | None  # the same of its teacher; of several, their mean

    @property
    def labels(self) -> np.ndarray:
        """Return the labels [n] of the test images."""
        return self.dataset.test.labels.numpy()

    @property
    def taught_by(self) -> str:
        """Return the names of its teachers, joined."""
        return " + ".join(self.teachers)


def outputs(
    network: nn.Module, split: Split, dataset: Dataset, device: torch.device
) -> Iterator[Output]:
    """Yield the outputs of a network in eval mode for a split, batch by batch, unaugmented."""
    for start in range(0, len(split.labels), BATCH):
        images = split.images[start : start + BATCH].to(device)
        with torch.inference_mode(), arithmetic("fp32"):
            output: Output = network(normalise(images, dataset.mean, dataset.std))
        yield output


def logits_of(
    network: nn.Module, split: Split, dataset: Dataset, device: torch.device
) -> np.ndarray:
    """Return logits [n, K] in float64.

    Raises:
        KdbenchError: some are not finite.
    """
    found = [out.logits.double().cpu() for out in outputs(network, split, dataset, device)]
    logits = torch.cat(found).numpy()
    if not np.isfinite(logits).all():
        raise KdbenchError(
            f"a network's outputs on {dataset.name} are not finite: its weights are damaged"
        )
    return logits


def features_of(network: nn.Module, split: Split, dataset: Dataset, device: torch.device) -> Tensor:
    """Return penultimate features [n, D] on the CPU: the input of the classifier."""
    return torch.cat([out.taps["pooled"].cpu() for out in outputs(network, split, dataset, device)])


def open_subjects(
    names: Sequence[str],
    runtime: Runtime,
    runs_dir: Path,
    dataset: Node | None,
    root: str | None,
    teacher: str | None,
    report: Report,
) -> list[Subject]:
    """Build what a user names, score it, and find its teachers.

    Args:
        names: as `find_sources`'s, and `runs_dir`, `dataset` and `root` too.
        runtime: where it computes.
        teacher: another place of the teachers' file.
        report: is told what a user should see.

    Raises:
        ConfigError: networks are of different data.
        KdbenchError: a file is not there, damaged, or does not score what its passport says.
    """
    shelf, subjects = Shelf(), list[Subject]()
    sources = find_sources(names, runs_dir, dataset, root)
    for source, name in zip(sources, labels_of(sources), strict=True):
        data = shelf.dataset(source)
        if subjects:
            check_same_test(subjects[0], source, data)
        network, notices = build_finished(source, data)
        for line in notices:
            report(line)
        network.to(runtime.device)
        logits = logits_of(network, data.test, data, runtime.device)
        correct = logits.argmax(axis=1) == data.test.labels.numpy()
        check_top1(source.name, source.passport, 100 * float(correct.mean()), len(correct))
        teachers = teachers_of(source, data, runtime, teacher, report)
        answers = [logits_of(one, data.test, data, runtime.device) for one in teachers.values()]
        taught = np.mean(answers, axis=0) if answers else None
        facts = source, data, network, teachers, runtime.device, logits, taught
        subjects.append(Subject(name, *facts))
    compare_all(subjects)
    return subjects


def compare_all(subjects: Sequence[Subject]) -> None:
    """Let students without a teacher, as of method=ce, be compared with that of all others.

    Where the others have several, there is nobody to compare them with; nor is a teacher compared
    with itself.
    """
    taught = [one for one in subjects if one.teachers]
    files = [tuple(facts.sha256 for facts in _recorded(one.source)) for one in taught]
    if len(set(files)) != 1:
        return
    for one in subjects:
        if not one.teachers and one.source.sha256 not in files[0]:
            one.teachers, one.teacher_logits = taught[0].teachers, taught[0].teacher_logits


def _recorded(source: Source) -> Sequence[ClassifierTeacher | DetectorTeacher]:
    return () if source.record is None else source.record.teachers


def check_same_test(first: Subject, source: Source, dataset: Dataset) -> None:
    """Refuse networks that are scored on other images.

    Raises:
        ConfigError: they are.
    """
    same = first.dataset is dataset or (
        torch.equal(first.dataset.test.labels, dataset.test.labels)
        and all(
            torch.equal(first.dataset.test.images[rows], dataset.test.images[rows])
            for rows in torch.arange(len(dataset.test.labels)).split(BATCH)
        )
    )
    if not same:
        raise ConfigError(
            f"runs of different data in one figure: {first.source.name} is of "
            f"{first.dataset.name}, {source.name} of {dataset.name}; analyse them apart"
        )


def teachers_of(
    source: Source, dataset: Dataset, runtime: Runtime, elsewhere: str | None, report: Report
) -> dict[str, nn.Module]:
    """Return a run's teachers with their weights, frozen; none of a checkpoint.

    Raises:
        KdbenchError: a file is not there, or is not the one that taught.
    """
    runs_dir, found = source.folder.parent, {}
    named = zip(source.teachers.items(), _recorded(source), strict=True)
    for (name, settings), facts in named:
        path = elsewhere or settings.checkpoint
        given = replace(settings, checkpoint=path, allow_chance=True)
        try:
            file = find_teacher(name, given, runs_dir)
        except KdbenchError as error:
            where = str(error).partition(". Train it")[0]
            raise KdbenchError(
                f"{where}. Set teacher_file=FILE, {name} taught {source.name}"
            ) from None
        if file.passport.sha256 != facts.sha256:
            raise KdbenchError(
                f"{file.path} is not the {name} that taught {source.name} (sha256 "
                f"{str(file.passport.sha256)[:12]}..., not {facts.sha256[:12]}...): set "
                "teacher_file=FILE"
            )
        loaded = load_teacher(file, dataset, runtime, runs_dir, report)
        for line in loaded.notices:
            report(line)
        found[facts.name] = loaded.network
    return found


def labels_of(sources: Sequence[Source]) -> list[str]:
    """Return the shortest names that tell networks apart: method, seed, student, else in full."""
    for parts in (("method",), ("method", "seed"), ("student", "method", "seed")):
        names = [_label(one, parts) for one in sources]
        if len(set(names)) == len(names):
            return names
    return [one.name for one in sources]


def _label(source: Source, parts: Sequence[str]) -> str:
    if source.record is None:
        return source.path.stem
    words = {
        "method": str(source.method),
        "seed": f"seed {source.seed}",
        "student": source.network.name,
    }
    return " ".join(words[part] for part in parts)


def first_seeds(subjects: Sequence[Subject]) -> list[Subject]:
    """Return the subjects of figures: each configuration's lowest seed, and every checkpoint."""
    chosen: dict[str, Subject] = {}
    for one in subjects:
        key = one.source.cell or one.source.name
        best = chosen.get(key)
        if best is None or (one.source.seed or 0) < (best.source.seed or 0):
            chosen[key] = one
    return list(chosen.values())
