"""make and Weights & Biases take nothing from the names of files and from the current folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import ROOT

TOUCH = "touch executed"
EVIL = f"x;{TOUCH} $({TOUCH}) `{TOUCH}` $(shell {TOUCH}) \"'&{TOUCH}&"
GIVEN = ["TEACHER", "TEACHERS", "ARGS", "RUNS", "IMAGENET", "KDBENCH_DATA", "PAIR", "TESTS"]
GIVEN += ["COUNT", "SEED", "KINDS", "QUICK", "TORCHDISTILL", "BUDGET"]
TARGETS = ["reproduce-cifar100", "reproduce-cpu", "reproduce-imagenet", "table", "coverage"]
TARGETS += ["bench", "chaos", "load", "quickstart", "campaign"]


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> None:
    """The Makefile, with programs that say what they are given."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "Makefile", "Makefile")
    programs = Path(".venv", "bin")
    programs.mkdir(parents=True)
    for name in ("python", "coverage"):
        (programs / name).write_text('#!/bin/sh\nprintf "<%s>" "$@"\necho\n')
        (programs / name).chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt", ".venv/.ready"):
        Path(name).touch()
    # A make that runs these tests would hand its flags on, and this one's output says so.
    for name in [*GIVEN, "MAKEFLAGS", "MAKELEVEL", "MFLAGS"]:
        monkeypatch.delenv(name, raising=False)


def make(*arguments: str) -> str:
    said = subprocess.run(["make", *arguments], capture_output=True, text=True, check=False)
    return said.stdout


@pytest.mark.parametrize("where", ["argument", "environment"])
def test_no_variable_of_make_is_a_line_of_a_shell(checkout, monkeypatch, where):
    given = []
    for name in GIVEN:
        if where == "environment":
            monkeypatch.setenv(name, EVIL)
        else:
            given.append(f"{name}={EVIL}")
    for target in TARGETS:
        make(target, *given)
    assert not Path("executed").exists()


def test_what_is_given_to_make_arrives_whole(checkout):
    said = make("reproduce-cifar100", f"TEACHER={EVIL}", "ARGS=seed=0 method=ce,kd x=*")
    assert f"<teacher.resnet32x4.checkpoint={EVIL}>" in said
    assert "<seed=0><method=ce,kd><x=*>" in said
    said = make("reproduce-cpu", "ARGS=seed=0 method=ce,kd runtime.threads=1")
    assert "<method=ce><seed=1000><dataset.download=true><runtime.threads=1>" in said
    assert f"<--take><{EVIL}>" in make("table", f"RUNS={EVIL}")
    said = make("reproduce-imagenet", "IMAGENET=a b", "TEACHERS=c d")
    assert said.count("<dataset.root=a b>") == 2
    assert "<teacher.ResNet34.checkpoint=c d/resnet34-333f7ec4.pth>" in said
    assert "IMAGENET=DIR" in make("reproduce-imagenet")
    said = make("campaign", "BUDGET=08h", f"TEACHER={EVIL}", "ARGS=method=kd,dkd seed=0")
    assert "<+experiments=campaign_cifar100><hydra.launcher.minutes=480>" in said
    assert f"<method=kd,dkd><seed=0><teacher.resnet32x4.checkpoint={EVIL}>" in said
    assert "<hydra.launcher.minutes=25>" in make("campaign", "BUDGET=25m")


@pytest.mark.parametrize("budget", ["", "25", "m", "-5m", "2.5h", "a[0]m", EVIL])
def test_a_campaign_asks_for_a_time(checkout, budget):
    said = make("campaign", f"BUDGET={budget}")
    assert said == "make campaign needs a time in minutes or hours: BUDGET=25m, BUDGET=8h\n"
    assert not Path("executed").exists()


SHOW = """
from pathlib import Path
from kdbench.tracking.wandb_mirror import Target
run = Target("p", None, "offline", Path("run")).start("x", live=True)
print(run.settings.base_url if hasattr(run, "settings") else run._settings.base_url)
run.finish()
"""


def test_wandb_reads_the_settings_of_no_folder(tmp_path):
    """They can name a server, to which the key would be sent; and git would run what they name."""
    for folder in ("wandb", ".wandb", "run/wandb"):
        (tmp_path / folder).mkdir(parents=True)
        text = "[default]\nbase_url = http://127.0.0.1:9\n"
        (tmp_path / folder / "settings").write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    hook = ["git", "config", "core.fsmonitor", f"touch {tmp_path / 'executed'}; false"]
    subprocess.run(hook, cwd=tmp_path, check=True)
    said = subprocess.run(
        [sys.executable, "-P", "-c", SHOW],
        cwd=tmp_path,
        env={**os.environ, "WANDB_API_KEY": "0" * 40},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "127.0.0.1" not in said.stdout
    assert not (tmp_path / "executed").exists()
