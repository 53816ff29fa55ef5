"""Runs that a user names, held against their records, none of them trained here."""

import json
import shutil
from pathlib import Path

import pytest

from kdbench.assembly.finished import Shelf, find_runs, find_sources
from kdbench.errors import ConfigError, KdbenchError
from kdbench.records.passport import sha256_of
from support.commands import ROOT
from support.records import make_record, write_content
from support.runs import config

DETECTORS = ROOT / "results" / "smoke" / "detection"


def make_run(runs: Path, **settings: object) -> Path:
    """A run's folder: its weights are no weights, and its record is of just these."""
    runs.mkdir(exist_ok=True)
    weights = runs / "student.safetensors"
    weights.write_bytes(b"weights")
    record = make_record(settings=settings, student_sha256=sha256_of(weights))
    folder = runs / record["run_id"]
    folder.mkdir()
    weights.rename(folder / weights.name)
    write_content(record, folder / "record.json")
    (folder / "config.json").write_text(json.dumps(config().spelt()))
    return folder


def test_a_name_of_several_configurations_is_nobody_s(tmp_path):
    first, second = sorted(make_run(tmp_path, alpha=alpha).name for alpha in (0.1, 0.2))
    cell = "cifar100-resnet32x4-resnet8x4-kd"
    for name in (cell, f"{cell}-s0"):
        with pytest.raises(KdbenchError) as told:
            find_runs(name, tmp_path)
        line = f"several configurations are called {name}: name one of {first}, {second}"
        assert str(told.value) == line
    assert find_runs(first, tmp_path) == [tmp_path / first]


def test_a_detector_is_no_source_of_a_classifier(tmp_path):
    run = tmp_path / "detector"
    run.mkdir()
    shutil.copy(min(DETECTORS.glob("coco-none-*.json")), run / "record.json")
    with pytest.raises(ConfigError) as told:
        find_sources([str(run)], tmp_path, None, None)
    assert str(told.value) == "detector is a detector: name runs of classifiers"


def test_weights_of_another_training_are_not_the_run_s(tmp_path):
    run = make_run(tmp_path)
    weights = run / "student.safetensors"
    weights.write_bytes(b"others")
    with pytest.raises(KdbenchError) as told:
        find_sources([run.name], tmp_path, None, None)
    assert str(told.value) == f"{weights} is not the file of its record: train the run again"


def test_images_that_are_not_those_of_the_training(tmp_path):
    """The data set makes others than it did, as a folder would that has changed."""
    run = make_run(tmp_path)
    (source,) = find_sources([run.name], tmp_path, None, None)
    with pytest.raises(ConfigError) as told:
        Shelf().dataset(source)
    assert str(told.value) == (
        f"{run.name} was trained on other images than synthetic holds here: set root=DIR to the "
        "folder that it was trained from"
    )
