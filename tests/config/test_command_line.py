"""A command's words before Hydra reads them: any text unquoted, flags anywhere, fast answers."""

import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.config.command_line import arranged, parts, quoted, read
from kdbench.config.hydra_cli import compose_jobs
from kdbench.config.run_config import takes_text

NAMES = [
    "epoch=9-step=1.ckpt",
    "模型/最好.pth",
    "my run/best model.pth",
    "a#1.pth",
    "# 1",
    "it's.pth",
    'say "this".pth',
    "best (1).pth",
    "a{1}[2].pth",
    "[a].pth",
    "~x&y;z!.pth",
    "résumé.pth",
    "007",
    "1e5",
    "3",
    "true",
    "[x]",
    "back\\slash=1",
    "ends=with\\",
    "nan",
]
ROOT = ["dataset=cifar100"]


@pytest.mark.parametrize("name", NAMES)
def test_any_file_name_is_taken_unquoted(command, name):
    line = command("evaluate", f"checkpoint={name}").error_line
    assert line.startswith(f"no checkpoint {name}: no such file")


@pytest.mark.parametrize("name", ["epoch=9-step=1", "模 型#", "12", "~no such user"])
def test_every_key_of_texts_is(command, name):
    named = ["teacher=resnet20", "method=kd", f"teacher.resnet20.checkpoint={name}"]
    assert f"no checkpoint {name}: no such file" in command("train", *named).error_line
    assert f"/{name}/cifar-100-python" in command("train", *ROOT, f"dataset.root={name}").error_line
    assert (
        f"/{name}/cifar-100-python" in command("train", *ROOT, f"++dataset.root={name}").error_line
    )
    line = command("train", "student=timm", f"student.model={name}").error_line
    assert f"timm has no model '{name}'" in line
    synthetic = ["dataset=synthetic", "dataset.num_train=16", "dataset.num_test=16", "runtime=cpu"]
    assert (
        command(
            "train", *synthetic, "schedule.epochs=1", "schedule.milestones=[]", f"runs_dir={name}"
        ).code
        == 0
    )
    assert list(Path(name).glob("*/record.json"))
    assert (
        "1 done"
        in command(
            "estimate",
            *synthetic,
            "schedule.epochs=1",
            "schedule.milestones=[]",
            f"runs_dir={name}",
        ).out
    )


def test_of_a_sweep_each_value_is(command):
    result = command("evaluate", "checkpoint=epoch=1.ckpt,模 型.pth,7", "-m")
    said = [line for line in result.err.splitlines() if "no such file" in line]
    assert [line.split(": ")[2] for line in said[:3]] == [
        "no checkpoint epoch=1.ckpt",
        "no checkpoint 模 型.pth",
        "no checkpoint 7",
    ]


def test_what_hydra_can_read_is_left_to_it():
    for word in (
        "seed=1",
        "a=null",
        "a='x=y'",
        "a=x\\=y",
        "a=[1,2]",
        "a={b:c}",
        "a=${b}/c",
        "~a",
        "a@b=c",
    ):
        assert quoted(word) == word
    assert quoted("+a=[b=1,c]") == "+a=['b=1',c]"
    assert parts("a,'b,c',[d,e],f(g,h)") == ["a", "'b,c'", "[d,e]", "f(g,h)"]
    assert parts("a, (b") == ["a, (b"]
    (job,) = compose_jobs("evaluate", ["checkpoint=null", "dataset.val_split=7"])
    assert (job["checkpoint"], job["dataset"]["val_split"]) == (None, 7)


def test_numbers_stay_numbers_and_other_types_say_what_they_want(command):
    assert (
        "schedule.lr must be a number, not '0.1=2'"
        in command("train", "schedule.lr=0.1=2").error_line
    )
    assert "seed must be a whole number, not '一'" in command("train", "seed=一").error_line
    assert "unknown method 'k=d'" in command("train", "method=k=d").error_line
    assert "'模型=3' is no setting: write KEY=VALUE" in command("train", "模型=3").error_line
    assert "'method' is no setting" in command("estimate", "method").error_line
    config = {"dataset": {"_target_": "kdbench.nowhere.x"}, "runs_dir": "runs"}
    assert not takes_text(config, "dataset.root")
    assert takes_text(config, "runs_dir")
    assert not takes_text({"teacher": {"a": {"passport": None}}}, "teacher.a.passport.top1")
    assert takes_text({"teacher": {"a": {"passport": {}}}}, "teacher.a.passport.source")


@pytest.mark.parametrize(
    ("word", "ways"),
    [
        ("method=ce,kd", ["add -m"]),
        ("teacher=resnet20,resnet32", ["add -m", "write teacher=[resnet20,resnet32]"]),
        ("runs_dir=a,b", ["add -m", "\"runs_dir='a,b'\""]),
        ("seed=range(0,3)", ["add -m"]),
        ("runs_dir=a=1,b", ["add -m"]),
    ],
)
def test_several_values_without_m(command, word, ways):
    result = command("train", word)
    assert result.code == 2
    assert all(way in result.error_line for way in ("has several values", *ways))


def test_flags_stand_anywhere():
    assert arranged(["method=ce", "-m", "seed=0,1"]) == ["-m", "method=ce", "seed=0,1"]
    words = ["a=1", "--config-name", "config", "b=c=d", "--multirun", "e=1"]
    assert arranged(words) == ["--config-name", "config", "--multirun", "a=1", "b='c=d'", "e=1"]


def test_a_flag_between_overrides(command):
    result = command("train", "method=kd", "-m", "seed=0,1")
    assert result.err.count("method kd reads 1 teacher(s), not 0") == 4
    assert "seed=1: " in result.err.splitlines()[-2]
    assert "unrecognized arguments: --mm" in command("train", "--mm", "seed=0").error_line


def test_two_teachers_of_one_architecture(command):
    named = ["method=aver", "teacher=[resnet20,resnet8,resnet20]"]
    line = command(
        "train", *named, "teacher.resnet20.checkpoint=x=1", "teacher.resnet8.checkpoint=y"
    ).error_line
    assert "no checkpoint x=1" in line
    (job,) = compose_jobs("config", arranged([*named, "teacher.resnet20_2.checkpoint=z=1"]))
    assert list(job["teacher"]) == ["resnet20", "resnet8", "resnet20_2"]
    assert job["teacher"]["resnet20_2"]["checkpoint"] == "z=1"
    assert job["teacher"]["resnet20_2"]["network"] == job["teacher"]["resnet20"]["network"]
    (job,) = compose_jobs("config", arranged(["teacher=[vgg13,vgg13]"]))
    assert job["teacher"]["vgg13_2"]["checkpoint"] == "digits-none-vgg13-ce-s1001"
    line = command("train", "teacher=[three_resnet56,three_resnet56]").error_line
    assert "as conf/teacher/three_resnet56.yaml does" in line


def test_a_sweep_of_texts_is_read_as_hydra_does():
    assert read("a=1") is not None
    assert read("a=b=c") is None


TYPOS = ["dataset=digit", "sed=0", "student=resnet9=1"]
OF_TRAIN = ["schedule.epoch=1", "teacher=[resnet20] teacher.resnet20.chekpoint=a", "loger.mode=x"]


@pytest.mark.parametrize(
    ("entry", "typo"),
    [*(("evaluate", typo) for typo in TYPOS), *(("train", typo) for typo in TYPOS + OF_TRAIN)],
)
def test_a_typo_is_answered_before_torch_is_imported(tmp_path, entry, typo):
    watch = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try: runpy.run_module('kdbench.' + sys.argv[0], run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", watch, entry, *typo.split()]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == "False\n"
    assert result.stderr.startswith("kdbench: error: unknown ")


def test_a_run_needs_no_models_of_other_libraries(tmp_path):
    """They take longer to import than a small run takes to start."""
    run = (
        "import sys; sys.argv = sys.argv[1:]; from kdbench.train import main; main();"
        "print({'torchvision', 'timm', 'wandb', 'scipy', 'matplotlib'} & set(sys.modules))"
    )
    settings = ["dataset=synthetic", "dataset.num_train=16", "dataset.num_test=16", "runtime=cpu"]
    command = [
        sys.executable,
        "-c",
        run,
        "train",
        *settings,
        "schedule.epochs=1",
        "schedule.milestones=[]",
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "set()", result.stderr
