"""What a run survives: steps that blow up, signals, kills, full disks, a second process."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import kdbench.errors
import kdbench.records.weights
import kdbench.system.files
import kdbench.tasks.classification.task
import kdbench.teachers.output_cache
import kdbench.tracking.run_logger
import kdbench.training.member
from kdbench.assembly.build import build_method
from kdbench.errors import DivergedError, KdbenchError, WriteError
from kdbench.methods.base import Method
from kdbench.records.checkpoint import Checkpoint, checkpoint_paths, load_tensors, save_checkpoint
from kdbench.system.files import write_atomically
from kdbench.system.locks import RunLock
from kdbench.teachers.output_cache import OutputCache
from kdbench.training.jobs import Job
from kdbench.training.optimizer import Optimizer
from kdbench.training.schedule import Schedule
from kdbench.training.together import train, train_together
from kdbench.types import Losses, Stream
from support.commands import ROOT, compose_method
from support.kills import Killed, at_step, kill
from support.records import record_at
from support.runs import CE, assert_same_runs, config, runs, same, taught, weights


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def teachers(here) -> list[str]:
    return [str(train(config("student=resnet14")))]


# Divergence


def optimizer(kind: str, weight: nn.Parameter) -> Optimizer:
    method = Method()
    if kind == "dot":
        method.streams = (Stream("label", ("ce",), -0.05), Stream("distillation", (), 0.05))
    network = nn.Module()
    network.weight = weight
    name = "adamw" if kind == "adamw" else "sgd"
    made = Optimizer(Schedule(1, 1, 0.1, [], optimizer=name), network, method)
    if kind == "fused":  # what a GPU has
        made.inner.param_groups[0]["fused"] = made.fused = True
        made.inner.found_inf = made.guard.tripped
    return made


@pytest.mark.parametrize("bad", ["loss", "gradient"])
@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("kind", ["plain", "fused", "adamw", "dot"])
def test_a_step_that_is_not_finite_moves_nothing_and_is_remembered(kind, first, bad):
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    training = optimizer(kind, weight)

    def step(extra: Callable[[], torch.Tensor]) -> None:
        losses = weight.sum() + extra(), weight.square().sum()
        training.update(Losses(*losses, losses))

    def sound() -> torch.Tensor:
        return torch.zeros(())

    def endless() -> torch.Tensor:
        return torch.tensor(float("inf"))

    def steep() -> torch.Tensor:  # 0, with the slope of a square root there
        return (weight[1] - weight[1].detach()).sqrt()

    for _ in range(first - 1):
        step(sound)
    assert training.guard.read() is None
    before = weight.detach().clone()
    buffers = [tensor.clone() for tensor in training.inner.state[weight].values()]
    step(endless if bad == "loss" else steep)
    step(sound)
    step(sound)
    assert torch.equal(weight, before)
    assert training.guard.read() == first
    for kept, found in zip(buffers, training.inner.state[weight].values(), strict=first > 1):
        assert torch.equal(kept, found)


LONG = ["schedule.batch_size=2"]  # 20 steps an epoch: the display reads after every second


def spoil(method: str, step: int, monkeypatch) -> None:
    """The loss of that method's step `step` (from 1) of this process is not a number."""
    original, count = kdbench.tasks.classification.task.losses_and_sums, 0
    spoilt = type(build_method(compose_method(method), 0))

    def losses_and_sums(student, recipe, batch, outputs):
        nonlocal count
        losses, sums = original(student, recipe, batch, outputs)
        if isinstance(recipe, spoilt):
            count += 1
            if count == step:
                losses = losses._replace(label=losses.label * float("nan"))
        return losses, sums

    monkeypatch.setattr(kdbench.tasks.classification.task, "losses_and_sums", losses_and_sums)


def test_divergence_stops_a_run_at_the_next_read_and_keeps_its_last_good_state(
    teachers, monkeypatch
):
    every = ["runtime.checkpoint_steps=3", *LONG]
    with monkeypatch.context() as patch:
        spoil("dkd", 27, patch)
        jobs = train_together([taught(m, teachers, *every) for m in ("kd", "dkd", "ce")])
    failed = jobs[1]
    assert isinstance(failed, DivergedError)
    assert "diverged in epoch 2: the loss or a gradient of step 27 is not finite" in str(failed)
    folder = runs()["synthetic-resnet14-resnet8-dkd-s0"]
    record = record_at(folder / "record.json")
    assert (record["status"], record["diverged_step"]) == ("failed", 27)
    assert [path.stem for path in checkpoint_paths(folder)] == [
        "checkpoint-000000021",
        "checkpoint-000000024",
    ]
    for path in checkpoint_paths(folder):
        tensors = load_tensors(path).tensors.values()
        assert all(t.isfinite().all() for t in tensors if t.is_floating_point())
    # Without what spoilt it, it goes on; the others never noticed.
    train(taught("dkd", teachers, *every))
    for method in ("kd", "dkd", "ce"):
        train(taught(method, teachers, *LONG, "runs_dir=alone"))
    (folder.parent / Path(teachers[0]).name).rename("teacher")
    assert_same_runs("alone", "runs")


def test_a_score_that_is_not_finite_ends_the_run(here, monkeypatch):
    scores = kdbench.tasks.classification.task.evaluate_together
    monkeypatch.setattr(
        kdbench.tasks.classification.task,
        "evaluate_together",
        lambda *given: [found._replace(loss=float("nan")) for found in scores(*given)],
    )
    with pytest.raises(DivergedError, match="diverged in epoch 1: its test/loss is not finite"):
        train(config("method=ce"))


def test_a_checkpoint_that_is_cut_off_is_none(tmp_path):
    save_checkpoint(tmp_path, 3, Checkpoint({"weight": torch.ones(4)}, {"epoch": 1}))
    (path,) = checkpoint_paths(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    assert load_tensors(path) is None


def test_a_checkpoint_of_another_state_is_one_line(command):
    """As one of another version is; or one that somebody has made up."""
    command("train", *CE, "schedule.lr=1e30")  # leaves a folder and no result
    (folder,) = runs().values()
    for tensors in ({"student/x": torch.ones(2)}, {"other": torch.ones(2)}):
        save_checkpoint(folder, 3, Checkpoint(tensors, {"step": 3}))
        line = command("train", *CE, "schedule.lr=1e30").error_line
        assert f"the newest checkpoint in {folder} holds another state" in line
    deep = {"state": "[" * 100_000, "checksum": "0"}
    save_file({"w": torch.ones(2)}, checkpoint_paths(folder)[0], deep)
    assert load_tensors(checkpoint_paths(folder)[0]) is None


def test_links_in_a_run_s_folder_empty_no_file_elsewhere(here):
    Path("precious").write_text("precious")
    Path(".lock").symlink_to(Path("precious").resolve())
    with pytest.raises(OSError, match="symbolic links"):
        RunLock(Path())
    facts = {"dtype": "float32"}
    table = OutputCache(Path("tables"), facts, 2, 2, 2)
    (table.folder / "rows").unlink()
    (table.folder / "rows").symlink_to(Path("precious").resolve())
    with pytest.raises(KdbenchError, match="symbolic links"):
        OutputCache(Path("tables"), facts, 2, 2, 2)
    assert Path("precious").read_text() == "precious"


# Stops


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_cluster_that_preempts_loses_no_step(command, monkeypatch, number):
    command("train", *CE, "runs_dir=undisturbed")
    with monkeypatch.context() as patch:
        at_step(5, lambda: os.kill(os.getpid(), number), patch)
        result = command("train", *CE)
    assert result.code == 130
    assert "stopped in epoch 2 after step 5; the same command goes on" in result.error_line
    assert command("train", *CE).code == 0
    assert_same_runs("undisturbed", "runs")


def test_checkpoints_between_epochs_are_gone_on_from(command, monkeypatch):
    command("train", *CE, "runs_dir=undisturbed")
    every = [*CE, "runtime.checkpoint_steps=2"]
    with monkeypatch.context() as patch:
        at_step(6, kill, patch)
        with pytest.raises(Killed):
            command("train", *every)
    (folder,) = runs().values()
    assert [path.stem[-2:] for path in checkpoint_paths(folder)] == ["03", "04"]
    result = command("train", *every)
    assert "going on after step 4" in result.out
    assert_same_runs("undisturbed", "runs")


# Two processes

HOLD = """
import sys, time
from pathlib import Path
from kdbench.system.locks import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_process_is_told_who_trains_the_run_and_touches_nothing(command):
    command("train", *CE, "schedule.lr=1e30")  # leaves a folder and no result
    (folder,) = runs().values()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        result = command("train", *CE, "schedule.lr=1e30")
        who = f"is being trained by process {holder.pid} on {socket.gethostname()}: wait for it"
        assert f"{folder.name} {who}" in result.error_line
        assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        holder.kill()
    assert "diverged" in command("train", *CE, "schedule.lr=1e30").error_line


def test_a_run_that_another_process_has_just_finished_is_done(here, monkeypatch, capsys):
    done = train(config("method=ce"))
    record = done / "record.json"
    record.rename("kept")
    original = Job.hold

    def late(job):
        Path("kept").rename(record)
        original(job)

    monkeypatch.setattr(Job, "hold", late)
    before = (done / "student.safetensors").stat().st_mtime_ns
    assert train(config("method=ce")) == done
    assert "is done: top-1" in capsys.readouterr().out
    assert (done / "student.safetensors").stat().st_mtime_ns == before


def test_a_file_system_without_locks_trains_without(tmp_path, monkeypatch):
    def unsupported(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("kdbench.system.locks.fcntl.flock", unsupported)
    RunLock(tmp_path).release()


def test_a_lock_that_fails_in_another_way_is_not_passed_over(tmp_path, monkeypatch):
    def broken(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("kdbench.system.locks.fcntl.flock", broken)
    with pytest.raises(OSError, match="Input/output error"):
        RunLock(tmp_path)


# Disks


def full(patch, after: int) -> None:
    """The disk is full after so many checkpoints: part of the file is written, no more."""
    original, count = kdbench.system.files.os.fsync, 0

    def fsync(descriptor):
        nonlocal count
        count += os.fstat(descriptor).st_size > 100_000
        if count > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    patch.setattr(kdbench.system.files.os, "fsync", fsync)


def test_a_full_disk_harms_no_checkpoint_and_is_said_in_one_line(command, monkeypatch):
    command("train", *CE, "runs_dir=undisturbed")
    with monkeypatch.context() as patch:
        full(patch, after=2)
        result = command("train", *CE)
    (folder,) = runs().values()
    assert "cannot write runs/" in result.error_line
    assert "(No space left on device): make room" in result.error_line
    assert [path.stem[-2:] for path in checkpoint_paths(folder)] == ["03", "06"]
    assert not list(folder.glob("*.tmp"))
    assert "going on after step 6" in command("train", *CE).out
    assert_same_runs("undisturbed", "runs")


@pytest.mark.parametrize("room", ["member", "log", "weights"])
def test_each_file_that_cannot_be_written_ends_its_run_alone(teachers, monkeypatch, room):
    """A checkpoint, the metrics, the student: kd's only, and ce beside it is as ever."""
    train(taught("ce", teachers, "runs_dir=alone"))
    name = {"member": "save_checkpoint", "log": "MetricsFile.epoch", "weights": "write_atomically"}
    where = {
        "member": kdbench.training.member,
        "log": kdbench.tracking.run_logger.MetricsFile,
        "weights": kdbench.records.weights,
    }
    attribute = name[room].rpartition(".")[2]
    original = getattr(where[room], attribute)

    def failing(*arguments):
        folder = getattr(arguments[0], "_path", arguments[0])
        if "-kd-" in str(folder):
            with kdbench.errors.writing(folder):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return original(*arguments)

    monkeypatch.setattr(where[room], attribute, failing)
    lost, done = train_together([taught(m, teachers, "runs_dir=together") for m in ("kd", "ce")])
    assert isinstance(lost, WriteError)
    assert "(Read-only file system)" in str(lost)
    assert same(weights(done), weights(next(iter(runs("alone").values()))))


def test_a_disk_that_fills_up_under_a_table_is_said_in_one_line(teachers, monkeypatch):
    with monkeypatch.context() as patch:

        def full(descriptor, content, offset):
            if not isinstance(content, bytes):  # a lock's
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(kdbench.teachers.output_cache.os, "pwrite", full)
        with pytest.raises(KdbenchError, match=r"output cache .*No space left on device.*: make"):
            train(taught("kd", teachers, "runtime.teacher=table"))
    assert train(taught("kd", teachers, "runtime.teacher=table")).is_dir()


def test_a_writer_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"before")
    monkeypatch.setattr(kdbench.system.files.os, "replace", lambda *paths: kill())
    with pytest.raises(Killed):
        write_atomically(path, b"after")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


def test_two_writers_of_one_file_do_not_mix(tmp_path, monkeypatch):
    path, original = tmp_path / "file", os.replace

    def interrupted(*paths):
        monkeypatch.setattr(kdbench.system.files.os, "replace", original)
        write_atomically(path, b"the other")
        original(*paths)

    monkeypatch.setattr(kdbench.system.files.os, "replace", interrupted)
    write_atomically(path, b"this one")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"this one"]


# Kills


@pytest.mark.long
def test_a_sweep_of_many_runs_holds_no_more_at_its_end_and_survives_a_kill(tmp_path):
    """The small part of `make load`."""
    given = [sys.executable, "-m", "chaos.load", "--count=24", f"--folder={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(given, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "24 runs ended with 24 records" in result.stdout


@pytest.mark.long
def test_whatever_happens_it_ends_with_the_same_bits(tmp_path):
    """The quick part of `make chaos`."""
    given = ["--count=4", "--methods=kd,crd", "--faults=read-only folder,clock"]
    result = subprocess.run(
        [sys.executable, "-m", "chaos.run", *given, f"--folder={tmp_path}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = tmp_path.glob("*/trials.jsonl")
    trials = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum(len(trial["kills"]) for trial in trials) == 4
    assert trials[1]["kind"] == "sweep"
    (path,) = tmp_path.glob("*/faults.jsonl")
    assert len(path.read_text().splitlines()) == 2
