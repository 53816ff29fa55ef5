"""Every configuration file composes and builds; every mistake is one line with the nearest name."""

from pathlib import Path

import pytest
import torch
import yaml

from kdbench.assembly.build import build_network
from kdbench.assembly.make import make
from kdbench.data.memory.synthetic import synthetic
from kdbench.errors import KdbenchError
from kdbench.tasks.detection.networks import Detector
from support.commands import ROOT, compose

FILES = sorted(
    (path.parent.name, path.stem)
    for path in (ROOT / "conf").glob("*/*.yaml")
    # Those of methods are composed in test_recipes.py and built in test_contract.py.
    if path.parent.name not in ("experiments", "tuned", "method")
)
NEEDS_DATA = {"cifar10", "cifar100", "fashion_mnist", "stl10", "image_folder", "parquet"} | {
    *("tiny_imagenet", "imagenet", "coco")
}
DETECTORS = ("fasterrcnn_", "coco")  # how names of `task=detection` begin


@pytest.fixture(scope="module")
def dataset():
    config = compose("dataset=synthetic").dataset
    return make(config)


@pytest.mark.parametrize(("group", "name"), FILES)
def test_every_file_composes_and_builds(group, name, dataset):
    """Classifiers are built without memory for their weights."""
    detects = ["task=detection"] if name.startswith(DETECTORS) else []
    config = compose(f"{group}={name}", *detects)
    if group == "task":
        assert config.task == name
        return
    if group == "pair":
        teachers, student = list(config.teacher), config.student.name
        kinds = {teacher.network.name for teacher in config.teacher.values()}
        prefix = "three_" if len(teachers) == 3 else ""
        kind = "self" if teachers == ["self"] else "".join(kinds)
        expected = f"{prefix}{kind}_{student}" if teachers else "none"
        assert name.removeprefix("imagenet_") == expected
        return
    node = getattr(config, group)
    if detects and group in ("student", "teacher"):
        network = node if group == "student" else node[name].network
        assert isinstance(make(network, num_classes=4), Detector)
    elif group in ("student", "teacher"):
        with torch.device("meta"):
            for network in [one.network for one in node.values()] if group == "teacher" else [node]:
                build_network(network, dataset)
    elif group == "dataset" and name in NEEDS_DATA:
        with pytest.raises(KdbenchError, match=r"dataset\.root"):
            make(node.having(root=node.settings["root"] and "nowhere"))
    elif (group, name) == ("runtime", "cuda") and not torch.cuda.is_available():
        with pytest.raises(KdbenchError, match="no GPU"):
            make(node)
    else:
        make(node)


@pytest.mark.parametrize("path", sorted((ROOT / "conf/tuned").glob("*.yaml")), ids=lambda p: p.stem)
def test_tuned_settings_apply_and_an_explicit_one_wins(path):
    dataset, _, student = path.stem.partition("_")
    settings = yaml.safe_load(path.read_text())
    chosen = (f"dataset={dataset}", f"student={student}")
    assert compose(*chosen).schedule.settings["lr"] == settings["schedule"]["lr"]
    assert compose(*chosen, "schedule.lr=0.3").schedule.settings["lr"] == 0.3


def test_several_teachers_and_none():
    assert list(compose("teacher=[resnet56,resnet20]").teacher) == ["resnet56", "resnet20"]
    assert compose("teacher=none").teacher == {}


def test_evaluate_composes():
    assert compose("student=resnet32", name="evaluate").student.name == "resnet32"


def test_equal_settings_are_equal_however_written():
    assert compose("schedule.lr=1", "schedule=cifar100") == compose(
        "schedule=cifar100", "schedule.lr=1.0"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["method=kdd"], "unknown method 'kdd': did you mean 'kd'?"),
        (["student=resnet8x5"], "unknown student 'resnet8x5': did you mean 'resnet8x4'?"),
        (["dataset=cifar1000"], "unknown dataset 'cifar1000': did you mean 'cifar100'?"),
        (["metod=kd"], "unknown key 'metod': did you mean 'method'?"),
        (
            ["method=kd", "method.temprature=3"],
            "unknown key 'method.temprature': did you mean 'temperature'?",
        ),
        (
            ["method=kd", "+method.temprature=3"],
            "unknown key 'method.temprature': did you mean 'temperature'?",
        ),
        (
            ["method=kd", "++method.temprature=3"],
            "unknown key 'method.temprature': did you mean 'temperature'?",
        ),
        (["+experiment=quickstart"], "unknown key 'experiment': did you mean 'experiments'?"),
        (["+experiments=quickstrt"], "unknown experiments 'quickstrt': did you mean 'quickstart'?"),
        (["seed=abc"], "seed must be a whole number, not 'abc'"),
        (["seed=-1"], "seed must be 0 or more, not -1"),
        (["seed=1.5"], "seed must be a whole number, not 1.5"),
        (["schedule.lr=fast"], "schedule.lr must be a number, not 'fast'"),
        (["schedule.epochs=true"], "schedule.epochs must be a whole number, not True"),
        (["schedule.milestones=[1,x]"], "schedule.milestones[1] must be a whole number, not 'x'"),
        (["schedule.milestones=3"], "schedule.milestones must be a list"),
        (["runtime.device=tpu"], "runtime.device='tpu' is not valid"),
        (["schedule.batch_size=0"], "schedule.batch_size must be 1 or more, not 0"),
        (["schedule.epochs=-5"], "schedule.epochs must be 1 or more, not -5"),
        (["schedule.milestones=[3,9]"], "each must be below 5"),
        (["student.num_classes=5"], "unknown key 'student.num_classes'"),
        (["~seed"], "seed is missing"),
        (["~method.name"], "method.name is missing"),
        (["method._target_=os.system"], "method._target_=os.system is not allowed"),
        (
            ["method._target_=kdbench.records.weight_files.pickle.loads"],
            "method._target_=kdbench.records.weight_files.pickle.loads is not allowed",
        ),
        (["method._target_=kdbench.nothing"], "method._target_=kdbench.nothing does not exist"),
        (["method=kd"], "method kd reads 1 teacher(s), not 0: set teacher=NAME"),
        (["method=kd", "teacher=timm", "teacher.timm.network.model=x"], "teacher timm has no"),
        (
            ["method=kd", "teacher=resnet20", "teacher.checkpoint=x"],
            "unknown key 'teacher.checkpoint': did you mean 'teacher.resnet20.checkpoint'?",
        ),
        (
            ["method=kd", "teacher=resnet20", "teacher.resnet20.chekpoint=x"],
            "unknown key 'teacher.resnet20.chekpoint': did you mean 'checkpoint'?",
        ),
        (
            ["method=kd", "teacher=[resnet20,resnet99]"],
            "unknown teacher 'resnet99': did you mean 'resnet",
        ),
        (["method=kd", "+teacher.x={checkpoint: y}"], "teacher.x.network is missing: choose a"),
        (["-m", "method=ce,kdd"], "unknown method 'kdd': did you mean 'kd'?"),
        (["-m", "sede=0,1"], "unknown key 'sede': did you mean 'seed'?"),
        (["method=kd="], "unknown method 'kd='"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["seed=glob(*)"], "seed=glob(*) stands for no value"),
        (["seed=${x}"], "Interpolation key 'x' not found"),
        (["runs_dir=${runs_dir}"], "Recursive interpolation"),
        (["task=detecton"], "unknown task 'detecton': did you mean 'detection'?"),
        (["dataset=coco"], "dataset coco is for detection (kdbench-train task=detection)"),
        (["student=fasterrcnn_ResNet18"], "student fasterrcnn_ResNet18 is for detection"),
        (["schedule=coco"], "schedule coco is for detection"),
        (["method=detection/hint"], "method hint is for task=detection, not for"),
        (["task=detection", "dataset=digits"], "dataset digits is for classification"),
        (["task=detection", "student=resnet8"], "student resnet8 is for classification"),
        (["task=detection", "schedule=cifar100"], "schedule cifar100 is for classification"),
        (
            ["task=detection", "method=kd", "teacher=resnet20"],
            "teacher.resnet20.network resnet20 is for classification",
        ),
        (
            ["task=detection", "+schedule.epochs=2"],
            "unknown key 'schedule.epochs': did you mean 'steps'?",
        ),
        (
            ["+experiments=smoke_vit_digits", "student.settings={drop_rate: 0.1}"],
            "Could not override 'student.settings'. To append to your config use "
            "+student.settings={drop_rate: 0.1}",
        ),
        (["hydra=null"], "hydra is not allowed: of Hydra's settings, only"),
        (["hydra.sweeper=null"], "hydra.sweeper is not allowed"),
        (["hydra.launcher=null"], "hydra.launcher must be a mapping, not None"),
        (["-m", "hydra/launcher=basic,cohort"], "hydra/launcher=basic,cohort is not allowed"),
        (["--run", "-m"], "--run and --multirun exclude each other"),
        (["--config-dir", "nowhere"], "--config-dir nowhere is no folder"),
    ],
)
def test_a_mistake_is_one_line(command, arguments, line):
    result = command("train", *arguments)
    assert line in result.error_line
    assert result.code == 2
    assert not list(Path().glob("runs/*-s*")), "nothing was begun"


def test_evaluate_s_mistakes_too(command):
    assert "no checkpoint is named" in command("evaluate").error_line
    assert "unknown key 'checkpont'" in command("evaluate", "checkpont=x").error_line
    assert "unknown student 'resnet33'" in command("evaluate", "student=resnet33").error_line


def test_synthetic_is_the_data_set_of_its_file(dataset):
    node = compose("dataset=synthetic").dataset
    assert synthetic(**node.settings).fingerprint == dataset.fingerprint
