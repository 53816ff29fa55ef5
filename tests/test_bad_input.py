"""Bad input: one clear line, a non-zero exit, and nothing lost."""

import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kdbench.assembly.build import build_network
from kdbench.assembly.make import make
from kdbench.config.hydra_cli import one_line_errors
from kdbench.config.run_config import check_train
from kdbench.data.memory.synthetic import synthetic
from kdbench.errors import ConfigError, KdbenchError
from kdbench.methods.kd import KD
from kdbench.schema.check import check_node, convert
from kdbench.system.runtime import Runtime

DATA = ["dataset=synthetic", "dataset.num_train=40", "dataset.num_test=200"]
KD_RUN = [*DATA, "method=kd", "student=resnet8", "teacher=resnet8", "runtime=cpu"]


def state(classes: int = 10) -> dict[str, torch.Tensor]:
    dataset = synthetic(classes, 10, 10, 32, 0, [0.5] * 3, [0.25] * 3, 0, False, 0)
    torch.manual_seed(0)
    return build_network({"_target_": "kdbench.networks.resnet.resnet8"}, dataset).state_dict()


def distil(command, checkpoint: object, *more: str):
    return command(
        "train",
        *KD_RUN,
        f"teacher.resnet8.checkpoint={checkpoint}",
        "teacher.resnet8.allow_chance=true",
        *more,
    )


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "resnet8.safetensors"
    save_file(state(), path)
    return path


def test_missing_data_says_where_it_looked_and_how_to_get_it(command):
    line = command("train", "dataset=cifar100", "dataset.root=nowhere").error_line
    assert "nowhere" in line
    assert "dataset.download=true" in line


def test_a_missing_checkpoint(command):
    line = distil(command, "nothing.pth").error_line
    assert "no checkpoint nothing.pth: no such file, and no such run in runs" in line


def test_a_teacher_that_was_not_trained_yet(command):
    result = command("train", "method=kd", "teacher=resnet20", "student=resnet8")
    assert result.code == 1
    assert "no checkpoint digits-none-resnet20-ce-s1000: no such file" in result.error_line
    assert "Train it with method=ce student=resnet20, or set teacher.resnet20" in result.error_line


def test_a_checkpoint_of_another_network(command, checkpoint):
    arguments = [a.replace("teacher=resnet8", "teacher=resnet14") for a in KD_RUN]
    result = command("train", *arguments, f"teacher.resnet14.checkpoint={checkpoint}")
    assert "is not of a resnet14 (it lacks layer1.1.conv1.weight)" in result.error_line


def test_a_checkpoint_of_a_wider_network(command, checkpoint):
    arguments = [a.replace("teacher=resnet8", "teacher=resnet8x4") for a in KD_RUN]
    result = command("train", *arguments, f"teacher.resnet8x4.checkpoint={checkpoint}")
    assert "is not of a resnet8x4" in result.error_line


def test_a_truncated_safetensors_file(command, checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    assert "is it truncated?" in distil(command, checkpoint).error_line


@pytest.mark.parametrize("keep", [0, 10, 5000, -50])
def test_a_truncated_pth_file(command, tmp_path, keep):
    path = tmp_path / "resnet8.pth"
    torch.save({"model": state()}, path)
    path.write_bytes(path.read_bytes()[:keep])
    line = distil(command, path).error_line
    assert str(path) in line
    assert "truncated" in line or "no checkpoint" in line


def test_a_checkpoint_with_other_classes(command, tmp_path):
    path = tmp_path / "resnet8.pth"
    torch.save({"model": state(classes=7)}, path)
    assert "has 7 classes, the data set 10" in distil(command, path).error_line


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_a_pickle_that_would_run_code_is_refused(command, tmp_path, write):
    path = tmp_path / "resnet8.pth"
    if write == "torch":
        torch.save({"model": state(), "extra": RunsCode()}, path)
    else:
        path.write_bytes(pickle.dumps(RunsCode()))
    assert "is refused" in distil(command, path).error_line
    assert not Path("executed").exists()


def test_a_file_that_is_no_checkpoint(command, tmp_path):
    for name in ("notes.txt", "notes.safetensors"):
        (tmp_path / name).write_text("root:x:0:0:\nq1]|(")
        assert f"{tmp_path / name} " in distil(command, tmp_path / name).error_line


def test_a_file_without_weights(command, tmp_path):
    path = tmp_path / "resnet8.pth"
    torch.save({"epoch": 240}, path)
    assert "holds no weights" in distil(command, path).error_line


def test_a_teacher_off_its_passport(command, checkpoint):
    line = distil(command, checkpoint, "teacher.resnet8.passport={top1:79.4}").error_line
    assert "its passport says 79.40" in line
    assert distil(command, checkpoint).code == 0, "without a passport it is measured"
    again = distil(command, checkpoint, "teacher.resnet8.passport={top1:79.4}", "seed=1")
    assert "its passport says 79.40" in again.error_line, "also when it was measured before"
    (measurement,) = Path("runs/.teachers").iterdir()
    whole = measurement.read_text()
    for number, damaged in enumerate(("{", whole.replace("[", "[1", 1)), start=2):
        measurement.write_text(damaged)
        assert distil(command, checkpoint, f"seed={number}").code == 0
        assert measurement.read_text() == whole, "a damaged measurement is made again"


def test_a_file_that_is_not_its_passport_s(command, checkpoint):
    beside = checkpoint.with_name("resnet8.passport.json")
    beside.write_text(json.dumps({"sha256": "0" * 64}))
    assert "is not the file of its passport" in distil(command, checkpoint).error_line
    for text in ("{", "[]", '{"top1": "high"}', '{"colour": 1}'):
        beside.write_text(text)
        assert "is not a passport" in distil(command, checkpoint).error_line


def test_a_teacher_of_another_normalisation_or_data_set(command, checkpoint):
    line = distil(command, checkpoint, "teacher.resnet8.passport={mean:[0.1,0.2,0.3]}").error_line
    assert "set dataset.mean=[0.1,0.2,0.3]" in line
    line = distil(command, checkpoint, "teacher.resnet8.passport={dataset:cifar100}").error_line
    assert "was trained on cifar100, not on synthetic" in line


def test_a_folder_that_cannot_be_written(command, tmp_path):
    (tmp_path / "file").write_text("in the way")
    line = command("train", *DATA, "runs_dir=file/runs").error_line
    assert "cannot write to" in line
    assert "runs_dir=DIR" in line
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(command):
    assert "torch sees no GPU" in command("train", "runtime=cuda").error_line


def test_a_tap_that_the_network_has_not(command, checkpoint, monkeypatch):
    monkeypatch.setattr(KD, "taps", ("stage9",))
    assert (
        "the student has no tap 'stage9': did you mean 'stage"
        in distil(command, checkpoint).error_line
    )


def test_a_tap_path_that_a_foreign_network_has_not(command):
    line = command("train", *DATA, "student=torchvision", "student.taps={stage1:layer9}").error_line
    assert "layer9" in line
    assert "did you mean 'layer" in line


def test_an_altered_record_is_not_believed(command):
    assert command("train", *DATA, "runtime=cpu").code == 0
    record = next(Path("runs").glob("*/record.json"))
    record.write_text(record.read_text().replace('"top1_last": ', '"top1_last": 9'))
    assert "was altered" in command("table", "runs").error_line
    assert "was altered" in command("train", *DATA, "runtime=cpu").error_line


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("stopped in epoch 2"), 130, "stopped in epoch 2"),
        (KdbenchError("its records cannot be read"), 1, "its records cannot be read"),
        (OSError(errno.ENOSPC, "No space left", "runs"), 1, "No space left: runs"),
        (ValueError("Only one of --run, --cfg"), 2, "Only one of --run, --cfg"),
    ],
)
def test_whatever_ends_a_command_is_one_line(capsys, error, code, line):
    with pytest.raises(SystemExit) as stop, one_line_errors("config", check_train):
        raise error
    assert (stop.value.code, capsys.readouterr().err) == (code, f"kdbench: error: {line}\n")


def test_a_disk_that_fails_in_a_job_is_one_line(command, monkeypatch):
    """Hydra would print the whole command above it."""

    def fail(config):
        raise OSError(errno.EIO, "Input/output error", "runs")

    monkeypatch.setattr("kdbench.training.together.train", fail)
    result = command("train", "-m", *DATA, "seed=0,1")
    assert result.code == 1
    line = "Input/output error: runs"
    said = [line, line, f"seed=0: {line}", f"seed=1: {line}", "2 of 2 runs have failed"]
    assert result.err.splitlines() == [f"kdbench: error: {each}" for each in said]


def test_fail_fast_stops_a_sweep_that_runs_one_by_one(command):
    sweep = ["-m", *DATA, "method=kd,dkd", "seed=0,1", "hydra.launcher.fail_fast=true"]
    lines = command("train", *sweep).err.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("kdbench: error: method=kd seed=0: method kd reads")
    assert lines[2] == "kdbench: error: 1 of 4 runs have failed, 3 were not tried"


def test_a_bug_is_no_mistake_of_the_command():
    with pytest.raises(ValueError, match="ours"), one_line_errors("config", check_train):
        raise ValueError("ours")


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"threads": 0}, "runtime.threads must be 1 or more, or null, not 0"),
        ({"checkpoint_epochs": 0}, "runtime.checkpoint_epochs must be 1 or more: 0"),
        ({"checkpoint_steps": 0}, "runtime.checkpoint_steps must be 1 or more, or null: 0"),
    ],
)
def test_a_runtime_that_makes_no_sense(setting, line):
    with pytest.raises(ConfigError, match=line):
        Runtime("cpu", **setting)


def test_settings_that_only_torch_refuses():
    node = {"_target_": "kdbench.networks.resnet.resnet8", "num_classes": -1}
    with pytest.raises(ConfigError, match="resnet8 cannot be built with these settings: Runtime"):
        make(node)


@pytest.mark.parametrize(
    ("value", "hint", "line"),
    [
        (10**400, float, "key is too large for a number"),
        ([], int | str, "key must be a whole number or text, not"),
        ({"_target_": "x"}, dict[str, Any], "key._target_ is not allowed: key is plain data"),
        (3, KD, "key must be a mapping with a _target_, not 3"),
    ],
)
def test_values_of_another_type(value, hint, line):
    with pytest.raises(ConfigError, match=line):
        convert("key", value, hint)


@pytest.mark.parametrize(
    ("node", "line"),
    [
        ({"temperature": 4.0}, "method must be a mapping with a _target_"),
        ({"_target_": "kdbench.data.memory.digits.digits"}, r"method\.\w+ is missing: set it"),
    ],
)
def test_nodes_that_are_not_whole(node, line):
    with pytest.raises(ConfigError, match=line):
        check_node("method", node)
