"""The committed records and weights are intact, and every table follows from them."""

import re
from subprocess import CalledProcessError, run

import pytest
import torch
from safetensors.torch import load_file

from kdbench.assembly.evaluation import evaluate
from kdbench.data.base import Split
from kdbench.data.memory.torchvision_sets import cifar100
from kdbench.ledger.formats import markdown
from kdbench.ledger.ledger import open_ledger, tables
from kdbench.ledger.results_folder import differing, made
from kdbench.networks.resnet import resnet32x4
from kdbench.records.passport import TOLERANCE, beside, read_passport, sha256_of
from kdbench.records.record import code_version, find_records
from kdbench.records.weights import load_weights
from support.commands import ROOT
from support.folders import real

RESULTS = ROOT / "results"
RUNS = RESULTS / "runs"
SMOKE = RESULTS / "smoke"
CONTROLS = RESULTS / "controls"
WEIGHTS = sorted((ROOT / "weights").glob("*.safetensors"))
RANKS = SMOKE / "ranks"  # in two processes: other settings, so kept from the tables of one


def test_committed_records_are_intact_and_named_after_their_run():
    names = {path.stem for path in RUNS.glob("*.json")}
    assert names
    assert {record.run_id for record in find_records([RUNS])} == names


def test_smoke_runs_are_kept_apart_and_their_tables_are_generated():
    records = find_records([SMOKE])
    assert {record.run_id for record in records} == {path.stem for path in SMOKE.glob("*.json")}
    schedules = {record.config.schedule.name for record in records}
    of_cnns = {"cifar100_smoke", "imagenette_smoke", "tiny_imagenet_smoke"}
    assert schedules == of_cnns | {"vit_smoke"}
    assert {record.status for record in records} == {"done"}, "a value that is not finite"
    page = (SMOKE / "README.md").read_text()
    made = [table for folder in (SMOKE, RANKS) for table in tables(open_ledger([folder], None))]
    assert all(markdown(table) in page for table in made), "run kdbench-table results/smoke"
    assert page.count("| method ") == len(made)


def test_smoke_runs_of_detectors_have_a_page_of_their_own():
    folder = SMOKE / "detection"
    records = find_records([folder])
    assert {record.run_id for record in records} == {path.stem for path in folder.glob("*.json")}
    made = [markdown(table) for table in tables(open_ledger([folder], None))]
    page = (folder / "README.md").read_text()
    assert all(table in page for table in made), "run kdbench-table results/smoke/detection"
    assert page.count("| method ") == len(made) == 2


def test_the_table_of_the_controls_is_generated():
    (table,) = tables(open_ledger([CONTROLS], None))
    assert markdown(table) in (CONTROLS / "README.md").read_text()


@pytest.mark.parametrize(("dataset", "chance"), [("imagenet", 10.0), ("tiny_imagenet", 5.0)])
def test_students_of_the_smoke_runs_learned(dataset, chance):
    """Of the real JPEGs, through the real pipelines: far above chance and above the first epoch."""
    records = [r for r in find_records([SMOKE]) if r.data.name == dataset and not modern(r)]
    assert {record.config.method.name for record in records} == {"ce", "kd", "dkd"}
    for record in records + [r for r in find_records([RANKS]) if r.data.name == dataset]:
        first = record.curve["test/top1"][0]
        assert record.top1_last > max(1.4 * first, 3 * chance), record.run_id


def modern(record) -> bool:
    return record.config.schedule.name == "vit_smoke"


@pytest.mark.parametrize(("dataset", "floor"), [("digits", 90.0), ("imagenet", 30.0)])
def test_a_vit_of_the_smoke_runs_learned(dataset, floor):
    """Far above chance, which is 10%, and so did the CNN that taught it."""
    records = [r for r in find_records([SMOKE]) if r.data.name == dataset and modern(r)]
    vits = [one for one in records if one.config.student.name.startswith("deit_tiny")]
    assert {"kd", "deit_token"} <= {one.config.method.name for one in vits}
    assert len(records) - len(vits) == 1, "the CNN that taught"
    for record in records:
        assert record.top1_last > max(floor, record.curve["test/top1"][0]), record.run_id
        assert {"adamw", "cosine"} < set(map(str, record.config.schedule.settings.values()))


def test_every_table_of_the_readme_is_generated():
    readme = (ROOT / "README.md").read_text()
    ledger = open_ledger([RUNS], RESULTS / "published.csv")
    shown = [table for table in tables(ledger) if markdown(table) in readme]
    assert shown, "copy a table of results/tables into the README"
    assert readme.count("| method ") == len(shown)


def test_generated_results_are_up_to_date():
    files, _ = made(RESULTS)
    assert differing(RESULTS, files) == [], "run python -m kdbench.report"


@pytest.mark.parametrize("error", [FileNotFoundError("git"), CalledProcessError(128, "git")])
def test_outside_a_checkout_there_is_no_commit(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("kdbench.records.record.subprocess.run", fail)
    assert code_version() is None


def test_a_file_that_git_does_not_know_is_a_change(monkeypatch, tmp_path):
    """It may be the method of the run."""
    run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "record.py").write_text("")
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    run(["git", "-C", tmp_path, "add", "."], check=True)
    run(["git", "-C", tmp_path, *names, "commit", "-qm", "x"], check=True)
    monkeypatch.setattr("kdbench.records.record.__file__", str(tmp_path / "src" / "record.py"))
    clean = code_version()
    (tmp_path / "src" / "mine.py").write_text("")
    assert code_version() == f"{clean}+changes"


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.stem)
def test_committed_weights_are_those_of_a_committed_run_in_half_precision(path):
    passport = read_passport(beside(path))
    assert passport.sha256 == sha256_of(path)
    tensors = load_file(path).values()
    assert {one.dtype for one in tensors if one.is_floating_point()} == {torch.float16}
    (record,) = [r for r in find_records([RUNS]) if (r.student_sha256 or "-") in passport.source]
    assert record.run_id in passport.source
    assert passport.top1 == pytest.approx(record.top1_last, abs=TOLERANCE)
    whole = float(re.search(r"top-1 ([\d.]+)\)", passport.source)[1])
    assert passport.top1 == pytest.approx(whole, abs=0.02)
    assert f"{passport.top1:.2f}" in path.stem


def test_the_committed_teacher_knows_the_test_set():
    """Of its first 100 images as many as when all 10,000 were scored: those take minutes."""
    settings = {"mean": [0.5071, 0.4867, 0.4408], "std": [0.2675, 0.2565, 0.2761]}
    root = str(real("cifar-100-python").parent)
    data = cifar100(root, False, **settings, pad=4, flip=True, val_split=0)
    network = resnet32x4(num_classes=100)
    load_weights(network, ROOT / "weights" / "resnet32x4_cifar100_78.82.safetensors", "the teacher")
    first = Split(data.test.images[:100], data.test.labels[:100])
    top1 = evaluate(network, first, data, torch.device("cpu")).top1
    assert top1 == pytest.approx(79.0, abs=1.0), "one image"
