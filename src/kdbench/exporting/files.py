"""From a finished run to a file that was loaded again and answers as the student does."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kdbench.assembly.evaluation import evaluate
from kdbench.assembly.finished import Shelf, Source, build_finished, find_sources
from kdbench.assembly.make import make
from kdbench.data.augmentation.views import normalise
from kdbench.data.base import Dataset
from kdbench.errors import ConfigError, KdbenchError
from kdbench.exporting import graphs, hub, int8, keys
from kdbench.exporting.card import card
from kdbench.exporting.classifier import Classifier, PixelClassifier
from kdbench.exporting.comparison import IMAGES, Comparison, check_equal, compare
from kdbench.exporting.graphs import Run
from kdbench.records.passport import check_top1
from kdbench.records.settings import ExportSettings
from kdbench.system.files import write_atomically


class Student(NamedTuple):
    """What is exported, on the CPU."""

    source: Source
    dataset: Dataset
    network: nn.Module
    classifier: Classifier
    images: Tensor  # test images as the classifier takes them
    labels: Tensor
    top1: float  # percent, on all test images

    def taken(self, pixels: Tensor) -> Tensor:
        """Return images as the classifier takes them, of pixels [n, C, H, W] uint8."""
        if isinstance(self.classifier, PixelClassifier):
            return pixels
        return normalise(pixels, self.dataset.mean, self.dataset.std)


def export(asked: ExportSettings) -> tuple[list[str], dict[str, Any]]:
    """Write the student that is named in the form that it asks for.

    Returns:
        Lines that a user should see, and what the file is and how it compares.

    Raises:
        KdbenchError: something is wrong that the user can mend, or the file answers otherwise than
            the network; there is no file then.
    """
    student, notices = open_student(asked)
    out = Path(asked.out)
    stem = student.source.folder.name if student.source.record else student.source.path.stem
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KdbenchError(f"cannot write to {out} ({error.strerror}): set out=DIR") from None
    written = FORMATS[asked.format](asked, student, out / stem)
    found = compared(student, written)
    facts = {"file": str(written.path), "format": asked.format, "pixels": asked.pixels}
    return notices, {**facts, **found}


def open_student(asked: ExportSettings) -> tuple[Student, list[str]]:
    """Find the student, build it, and score it on all test images."""
    if asked.run is None:
        raise ConfigError("no run is named: kdbench-export RUN format=onnx")
    sources = find_sources([asked.run], Path(asked.runs_dir), asked.dataset, asked.root)
    if len(sources) > 1:
        names = ", ".join(one.name for one in sources)
        raise ConfigError(f"{asked.run} is {len(sources)} runs: name one of {names}")
    (source,) = sources
    dataset = Shelf().dataset(source)
    network, notices = build_finished(source, dataset)
    scores = evaluate(network, dataset.test, dataset, torch.device("cpu"))
    check_top1(source.name, source.passport, scores.top1, scores.n)
    normalised = dataset.mean, dataset.std
    made = PixelClassifier(network, *normalised) if asked.pixels else Classifier(network)
    images, labels = dataset.test.images[:IMAGES], dataset.test.labels[:IMAGES]
    student = Student(source, dataset, network, made.eval(), images, labels, scores.top1)
    return student._replace(images=student.taken(images)), notices


class Written(NamedTuple):
    """A file or folder that was written, and how it is held against the network."""

    path: Path
    load: Callable[[Path], Run]
    rounded: Run | None = None  # what it holds where that is not the network: its int8 form


def compared(student: Student, written: Written) -> dict[str, Any]:
    """Compare what was written with the network, and remove it where it must not be kept."""
    path, load, rounded = written
    try:
        run = load(path)
        given = student.images, student.labels
        found, largest = compare(rounded or student.classifier, run, *given)
        check_equal(found, largest)
        if rounded is not None:
            found = on_all(student, run)
    except BaseException:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise
    return dict(found._asdict())


def on_all(student: Student, run: Run) -> Comparison:
    """Compare a file with the network on all test images: what its rounding costs."""
    images, labels = student.dataset.test
    parts = [
        compare(student.classifier, run, student.taken(images[rows]), labels[rows])[0]
        for rows in torch.arange(len(labels)).split(IMAGES)
    ]
    n = len(labels)
    return Comparison(
        n,
        max(part.max_difference for part in parts),
        sum(part.n * part.top1 for part in parts) / n,
        sum(part.n * part.top1_exported for part in parts) / n,
    )


def _file(stem: Path, ending: str, content: bytes) -> Path:
    path = stem.with_name(stem.name + ending)
    write_atomically(path, content)
    return path


def _program(asked: ExportSettings, student: Student, stem: Path) -> Written:
    content = graphs.write_program(student.classifier, student.images)
    return Written(_file(stem, ".pt2", content), graphs.load_program)


def _onnx(asked: ExportSettings, student: Student, stem: Path) -> Written:
    content = graphs.write_onnx(student.classifier, student.images, asked.opset)
    return Written(_file(stem, ".onnx", content), graphs.load_onnx)


def _torchscript(asked: ExportSettings, student: Student, stem: Path) -> Written:
    content = graphs.write_torchscript(student.classifier, student.images)
    return Written(_file(stem, ".pt", content), graphs.load_torchscript)


def _int8(asked: ExportSettings, student: Student, stem: Path) -> Written:
    split = student.dataset.train
    rows = torch.linspace(0, len(split.labels) - 1, int8.CALIBRATION).long().unique()
    made = int8.quantised(plain(student), student.taken(split.images[rows]))
    content = graphs.write_torchscript(made, student.images)
    path = _file(stem, ".int8.pt", content)
    return Written(path, int8.load_int8, int8.without_warnings(made))


def plain(student: Student) -> Classifier:
    """Return the classifier without taps, which another library's network has as hooks."""
    node, dataset = student.source.network, student.dataset
    if node.target not in keys.OTHERS:
        return student.classifier
    shape = student.images.shape[1], dataset.num_classes
    tensors = student.network.state_dict()
    bare = keys.classifier_there(node, keys.OTHERS[node.target], tensors, *shape)
    keys.adapt(bare, node, dataset)
    if isinstance(student.classifier, PixelClassifier):
        return PixelClassifier(bare.network, dataset.mean, dataset.std).eval()
    return bare


def _weights(asked: ExportSettings, student: Student, stem: Path) -> Written:
    _refuse_pixels(asked)
    content = save(keys.state_dict_as(student.network, student.source.network, asked.keys))
    path = _file(stem, f".{asked.keys}.safetensors", content)
    return Written(path, lambda path: rebuilt(student, asked.keys, load_file(path)))


def _hub(asked: ExportSettings, student: Student, stem: Path) -> Written:
    _refuse_pixels(asked)
    source, dataset = student.source, student.dataset
    tensors = keys.state_dict_as(student.network, source.network, asked.keys)
    python = hub.loading(source, dataset, asked.keys)
    files = {
        hub.WEIGHTS: save(tensors, {"format": "pt"}),
        hub.CONFIG: json.dumps(hub.config_of(source, dataset, asked.keys), indent=1).encode(),
        hub.CARD: card(source, dataset, asked.licence, student.top1, python).encode(),
    }
    stem.mkdir(exist_ok=True)
    for name, content in files.items():
        write_atomically(stem / name, content)
    return Written(stem, lambda path: rebuilt(student, asked.keys, hub.read_folder(path)[1]))


FORMATS: dict[str, Callable[[ExportSettings, Student, Path], Written]] = {
    "torch_export": _program,
    "onnx": _onnx,
    "torchscript": _torchscript,
    "int8": _int8,
    "safetensors": _weights,
    "hub": _hub,
}


def _refuse_pixels(asked: ExportSettings) -> None:
    if asked.pixels:
        raise ConfigError(
            f"format={asked.format} holds weights alone, and no normalisation: leave pixels=true "
            "out, or choose torch_export, onnx, torchscript or int8"
        )


def rebuilt(student: Student, style: str, tensors: Mapping[str, Tensor]) -> Run:
    """Return a network that has nothing of the student's but what was written."""
    dataset, node = student.dataset, student.source.network
    shape = student.images.shape[1], dataset.num_classes
    if style != "repdistiller":
        made = keys.classifier_there(node, style, tensors, *shape)
        keys.adapt(made, node, dataset)
        return made
    network: nn.Module = make(node, "network", in_channels=shape[0], num_classes=shape[1])
    network.load_state_dict(dict(tensors))
    return Classifier(network.eval())
