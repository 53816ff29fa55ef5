"""Small runs on digits and what two of them must have in common."""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import kdbench.training.member
from kdbench.records.settings import TrainSettings
from support.commands import compose
from support.records import record_at

SMALL = [
    "dataset=synthetic",
    "dataset.num_train=40",
    "dataset.num_test=20",
    "schedule.batch_size=16",  # 40 = 2 x 16 + 8: the last batch is short
    "schedule.epochs=3",
    "schedule.milestones=[2]",
    "runtime=cpu",
    "runtime.threads=1",
]
CE = [*SMALL, "method=ce", "student=resnet8"]


def runs(where: str = "runs") -> dict[str, Path]:
    """Run folders by their name without the hash."""
    return {path.name.rpartition("-")[0]: path for path in Path(where).glob("*-s*-*")}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "student.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while step number `step` (from 1) of this process is under way."""
    original, count = kdbench.training.member.train_step, 0

    def counted(*arguments):
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(kdbench.training.member, "train_step", counted)


TWO_EPOCHS = ["schedule.epochs=2", "schedule.milestones=[]"]


def config(*overrides: str) -> TrainSettings:
    return compose("student=resnet8", *SMALL, *TWO_EPOCHS, *overrides)


def taught(method: str, teachers: list[str], *overrides: str) -> TrainSettings:
    named = [f"teacher.resnet14.checkpoint={teachers[0]}", "teacher.resnet14.allow_chance=true"]
    return config(f"method={method}", "teacher=resnet14", *named, *overrides)


def assert_same_runs(first: str, second: str) -> None:
    one, other = runs(first), runs(second)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].name == other[name].name
        assert same(weights(one[name]), weights(other[name])), name
        records = [record_at(folder / "record.json") for folder in (one[name], other[name])]
        for key in ("status", "top1_last", "top5_last", "loss_last", "curve", "hash"):
            assert records[0][key] == records[1][key], (name, key)
