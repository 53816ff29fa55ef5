"""Files and settings that would cost memory, a whole training, or a traceback."""

import json
import zipfile
from pathlib import Path

import pytest
import torch

from kdbench.errors import ConfigError, KdbenchError
from kdbench.records.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, save_tensors
from kdbench.records.passport import find_passport, read_passport
from kdbench.records.weight_files import read_content
from kdbench.schema.check import convert
from kdbench.teachers.output_cache import OutputCache
from kdbench.tracking.sending import State
from kdbench.tracking.wandb_mirror import Target

SMALL = ["dataset=synthetic", "dataset.num_train=40", "dataset.num_test=20", "runtime=cpu"]
SMALL += ["schedule.epochs=1", "schedule.milestones=[]", "student=resnet8"]


# Archives.


@pytest.fixture
def squeezed(tmp_path) -> bytes:
    """A checkpoint of 4 MB in some thousand bytes."""
    whole, small = tmp_path / "whole.pth", tmp_path / "small.pth"
    torch.save({"w": torch.zeros(1_000_000)}, whole)
    with zipfile.ZipFile(whole) as found, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as made:
        for member in found.infolist():
            made.writestr(member.filename, found.read(member))
    return small.read_bytes()


@pytest.mark.parametrize("tail", [0, 1000, 66_000, 68_000])
def test_an_archive_does_not_grow_in_memory(tmp_path, squeezed, tail):
    """Beyond 65,557 bytes of a tail Python sees no archive, and PyTorch does."""
    path = tmp_path / "teacher.pth"
    path.write_bytes(squeezed + b"x" * tail)
    with pytest.raises(KdbenchError, match="it is compressed, as PyTorch writes none"):
        read_content(path)


def test_honest_files_are_read(tmp_path):
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pth"
        torch.save({"w": torch.ones(1000)}, path, _use_new_zipfile_serialization=zipped)
        assert read_content(path)["w"].sum() == 1000


# What a record could not hold is refused before the first step.

ODD = {
    "escape": "a\x1b[2Jb",
    "line": "a\nb",
    "surrogate": "a\ud800b",
    "nul": "a\0b",
    "bidi": "a\u202eb",
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_texts_of_a_configuration_can_be_printed(text):
    from kdbench.config.hydra_cli import compose_jobs
    from kdbench.config.run_config import check_train

    (job,) = compose_jobs("config", ["method=kd", "teacher=resnet8"])
    teacher = {**job["teacher"]["resnet8"], "passport": {"source": text}}
    for changed in (
        {"method": {**job["method"], "name": text}},
        {"runs_dir": text},
        {"dataset": {**job["dataset"], "name": text}},
        {"teacher": {text: job["teacher"]["resnet8"]}},
        {"teacher": {"resnet8": teacher}},
        {"teacher": {"resnet8": {**teacher, "checkpoint": text}}},
    ):
        with pytest.raises(ConfigError, match="cannot be printed") as caught:
            check_train({**job, **changed})
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "setting", ["schedule.lr=nan", "method.ce_weight=nan", "schedule.weight_decay=inf"]
)
def test_numbers_of_a_configuration_are_numbers(command, setting):
    result = command("train", *SMALL, "method=label_smoothing", f"++{setting}")
    assert result.code == 2
    assert result.error_line
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "fields",
    [
        *({"source": text} for text in ODD.values()),
        {"dataset": "a\nb"},
        {"top1": float("nan")},
        {"mean": [0.5, float("inf"), 0.5]},
        {"top1": 10**400},
        [],
    ],
)
def test_a_passport_that_no_record_could_hold_is_refused_before_training(tmp_path, fields):
    """The record takes its source and its top-1 over, when the run has ended."""
    path = tmp_path / "teacher.passport.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(KdbenchError, match="is not a passport") as caught:
        read_passport(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(KdbenchError):
        find_passport(tmp_path / "teacher.pth", "0")


# One line each.


def test_a_nul_in_a_folder_is_one_line(command):
    for key in ("runs_dir", "dataset.root"):
        result = command("train", "dataset=cifar10", f'{key}="a\0b"')
        assert result.code == 2
        assert result.error_line


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "null", "[]", "\0", "3"])
def test_a_table_whose_facts_cannot_be_read_gets_its_own(tmp_path, text):
    facts = {"dtype": "float32"}
    folder = OutputCache(tmp_path, facts, 2, 2, 3).folder
    (folder / "table.json").write_text(text)
    OutputCache(tmp_path, facts, 2, 2, 3)
    assert json.loads((folder / "table.json").read_text()) == facts


@pytest.mark.parametrize(
    "state", [[], [1], {}, {"step": "1"}, {"step": None}, None, 3, {"step": 1, "exact": 3}]
)
def test_a_checkpoint_of_another_state_is_none_of_a_run(tmp_path, state):
    save_checkpoint(tmp_path, 1, Checkpoint({"w": torch.zeros(1)}, {"step": 1}))
    newer = tmp_path / "checkpoint-000000002.safetensors"
    save_tensors(newer, {"w": torch.ones(1)}, state)
    found, damaged = load_checkpoint(tmp_path)
    assert found is not None
    assert found.state == {"step": 1}
    assert damaged == [newer]


def test_a_history_of_other_things_than_epochs_is_one_line(command):
    from kdbench.records.checkpoint import checkpoint_path, load_tensors

    long = [*SMALL, "schedule.epochs=2", "runtime.checkpoint_epochs=1"]
    assert command("train", *long).code == 0
    (folder,) = Path("runs").glob("*-s*")
    (folder / "record.json").unlink()
    save_tensors(checkpoint_path(folder, 1), {"w": torch.ones(1)}, {"step": 1, "history": [1]})
    assert load_tensors(checkpoint_path(folder, 1)) is not None
    result = command("train", *long)
    assert result.code == 1
    assert "holds another state than this run has" in result.error_line


@pytest.mark.parametrize("text", ["[]", "[1]", "null", '"x"', "{", "[" * 100_000])
@pytest.mark.parametrize("inner", [False, True])
def test_a_state_of_sync_that_is_none_has_all_sent_again(tmp_path, text, inner):
    target = Target("p", None, "offline", tmp_path)
    key = "offline /p"
    (tmp_path / "state.json").write_text(f'{{"{key}": {text}}}' if inner else text)
    state = State(target)
    assert not state.has("x", "y")
    state.keep("x", "y")
    assert State(target).has("x", "y")


def test_a_launcher_that_nobody_knows_is_one_line(command):
    for name in ("hydra_plugins.nothing.Launcher", "os.system"):
        result = command("train", "-m", f"hydra.launcher._target_={name}")
        assert result.code == 2
        assert "set hydra/launcher=basic or cohort" in result.error_line


def test_numbers_beyond_floats_are_one_line():
    with pytest.raises(ConfigError, match="too large"):
        convert("x", 10**400, float)
