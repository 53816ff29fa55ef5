"""A folder of small finished runs, for the commands that start from such."""

import shutil
from pathlib import Path

from support.commands import Command
from support.runs import SMALL

DATA = [*SMALL, "dataset.num_train=80", "dataset.num_test=60"]
TEACHER = "teacher.resnet14.checkpoint=synthetic-none-resnet14-ce-s0"
TAUGHT = ["teacher=resnet14", TEACHER, "teacher.resnet14.allow_chance=true"]


def train(command: Command, keep: Path) -> Path:
    """In ./runs: a teacher, two seeds of CE and of KD, and SimKD; trained once, kept in `keep`."""
    if (keep / "runs").is_dir():
        shutil.copytree(keep / "runs", "runs")
        return Path("runs")
    assert command("train", *DATA, "student=resnet14").code == 0
    for words in (["method=ce"], ["method=kd", *TAUGHT]):
        result = command("train", "-m", *DATA, *words, "student=resnet8", "seed=0,1")
        assert result.code == 0, result.err
    assert command("train", *DATA, "method=simkd", *TAUGHT).code == 0
    shutil.copytree("runs", keep / "runs")
    return Path("runs")
