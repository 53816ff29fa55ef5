"""What a teacher's file, scores and numbers are held against; what a student starts from."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import kdbench.teachers.outputs
from kdbench.assembly.make import make
from kdbench.config.run_config import check_train
from kdbench.errors import ConfigError
from kdbench.networks.resnet import resnet8
from kdbench.records.notices import EVENTS_FILE, tell, told
from kdbench.records.passport import Passport
from kdbench.records.settings import Start
from kdbench.teachers.loading import TeacherFile, check_chance
from kdbench.training.jobs import open_job
from kdbench.training.together import self_teacher
from support.commands import Command
from support.records import record_at
from support.runs import SMALL, config, runs, weights

NODE = {"_target_": "kdbench.networks.resnet.resnet8"}
SHORT = [*SMALL, "schedule.epochs=1", "schedule.milestones=[]"]
ALLOWED = "teacher.resnet8.allow_chance=true"


def network(classes: int = 10, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return resnet8(num_classes=classes)


def save(content: object, name: str = "teacher.pth") -> Path:
    torch.save(content, name)
    return Path(name).resolve()


def distil(command: Command, path: Path, *more: str):
    named = ["teacher=resnet8", f"teacher.resnet8.checkpoint={path}"]
    return command("train", *more, *SHORT, "method=kd", "student=resnet8", *named)


@pytest.mark.parametrize(
    ("top1", "n", "classes", "stops"),
    [
        *((1.0, 10_000, 100, True), (1.29, 10_000, 100, True), (1.31, 10_000, 100, False)),
        *((0.0, 10_000, 100, True), (16.3, 200, 10, True), (16.5, 200, 10, False)),
    ],
)
def test_a_teacher_within_three_standard_errors_of_chance(top1, n, classes, stops):
    file = TeacherFile("resnet8", NODE, Path("x.pth"), Passport())
    if not stops:
        assert check_chance(file, top1, n, classes) == []
        return
    with pytest.raises(ConfigError, match=r"scores as guessing does.*resnet8\.allow_chance=true"):
        check_chance(file, top1, n, classes)
    (line,) = check_chance(file._replace(allow_chance=True), top1, n, classes)
    assert line.startswith("WARNING: teacher resnet8 (x.pth) scores as guessing does")


def test_a_teacher_at_chance_stops_unless_it_is_allowed(command):
    path = save(network().state_dict())
    refused = distil(command, path)
    assert "teacher resnet8" in refused.error_line
    assert "chance is 10.00" in refused.error_line
    assert "let it teach with teacher.resnet8.allow_chance=true" in refused.error_line
    allowed = distil(command, path, ALLOWED)
    assert allowed.code == 0, allowed.err
    assert "WARNING: teacher resnet8" in allowed.out
    assert "unverified" in allowed.out
    (folder,) = runs().values()
    assert len(told(folder)) == 2
    (facts,) = record_at(folder / "record.json")["teachers"]
    assert 0 <= facts["top1"] <= 100, "what was measured is in the record"


def test_a_sweep_s_terminal_says_what_its_workers_found(command):
    path = save({"state_dict": network().state_dict(), "x.total_ops": torch.zeros(1)})
    sweep = ["-m", "hydra/launcher=cohort", "seed=0,1", "hydra.launcher.size=1"]
    result = distil(command, path, *sweep, ALLOWED)
    assert result.code == 0, result.err
    for words in ("WARNING: teacher resnet8", "no passport; its top-1 is"):
        assert sum(words in line for line in result.out.splitlines()) == 1, "once for both runs"
    refused = distil(command, path, *sweep, "schedule.lr=0.01")
    assert refused.code != 0
    assert "scores as guessing does" in refused.err


def test_events_are_told_once_and_torn_ones_are_passed_over(tmp_path):
    for line in ("one", "two", "one"):
        tell(tmp_path, line)
    with (tmp_path / EVENTS_FILE).open("a") as file:
        file.write('[1]\n{"notice": "three"}\n{"noti')
    assert told(tmp_path) == ["one", "two", "three"]
    assert told(tmp_path / "nowhere") == []


def test_a_teacher_that_is_not_finite_is_named_when_it_is_measured(command):
    state = network().state_dict()
    state["fc.bias"][3] = float("nan")
    line = distil(command, save(state), ALLOWED).error_line
    assert "teacher resnet8" in line
    assert "outputs that are not finite, for 20 of 20 test images" in line
    assert "schedule.lr" not in line


@pytest.mark.parametrize("source", ["live", "table"])
def test_a_teacher_that_is_not_finite_while_it_teaches_is_the_cause(command, monkeypatch, source):
    """Its numbers overflow on training images alone, as they may at a lower precision."""
    freeze = kdbench.teachers.outputs.freeze

    def overflowing(*given):
        teacher = freeze(*given)
        inner = teacher.network

        def forward(images):
            output = inner(images)
            return output._replace(logits=output.logits * float("inf"))

        teacher.network = forward
        return teacher

    monkeypatch.setattr(kdbench.teachers.outputs, "freeze", overflowing)
    path = save(network().state_dict())
    line = distil(command, path, ALLOWED, f"runtime.teacher={source}").error_line
    assert "for outputs of teacher resnet8 are not: take another file or precision" in line
    assert "schedule.lr" not in line


def test_the_key_of_a_set_is_part_of_a_run_s_name_and_what_is_allowed_is_not(command):
    path = save(network().state_dict())
    named = ["method=kd", "teacher=resnet8", f"teacher.resnet8.checkpoint={path}"]

    def run_id(*more: str) -> str:
        checked = config(*named, *more)
        return open_job(checked, make(checked.dataset), Path()).identity.run_id

    assert run_id() == run_id(ALLOWED)
    assert run_id() != run_id("teacher.resnet8.checkpoint_key=student")
    assert not {"checkpoint_key", "allow_chance"} & config(*named).teacher["resnet8"].spelt().keys()


def test_of_two_sets_the_teacher_is_the_one_that_is_named(command):
    state = network().state_dict()
    path = save({"student": state, "teacher": {k: v + 1 for k, v in state.items()}})
    line = distil(command, path, ALLOWED).error_line
    assert "(student, teacher)" in line
    assert "teacher.resnet8.checkpoint_key=KEY" in line
    assert distil(command, path, ALLOWED, "teacher.resnet8.checkpoint_key=teacher").code == 0


def test_evaluate_chooses_among_sets_and_prints_strict_json(command):
    state = network().state_dict()
    odd = {key: value * float("nan") for key, value in state.items()}
    path = save({"model": state, "model_ema": odd})
    score = ["evaluate", *SMALL[:3], "student=resnet8", "runtime=cpu", f"checkpoint={path}"]
    assert "choose one with checkpoint_key=KEY" in command(*score).error_line
    result = command(*score, "checkpoint_key=model_ema")
    lines = result.out.splitlines()
    scores = json.loads(lines[-1], parse_constant=pytest.fail)
    assert scores["loss"] is None
    assert "outputs that are not finite, for 20 of 20 images" in lines[-2]
    assert json.loads(command(*score, "checkpoint_key=model").out.splitlines()[-1])["loss"] > 0


def started(command: Command, path: object, *more: str):
    return command("train", *SHORT, "student=resnet8", f"student.checkpoint={path}", *more)


def test_a_student_starts_from_weights(command):
    """At a learning rate of nearly nothing it ends where it started."""
    state = network(seed=5).state_dict()
    path = save({"model": state, "epoch": 3})
    still = ["schedule.lr=1e-30", "schedule.weight_decay=0"]
    assert started(command, path, *still).code == 0
    assert command("train", *SHORT, "student=resnet8", *still).code == 0
    folders = [path.parent for path in Path("runs").glob("*/record.json")]
    assert len(folders) == 2, "another run than the one without"
    (done,) = [f for f in folders if "start" in record_at(f / "record.json")["config"]]
    assert torch.equal(weights(done)["conv1.weight"], state["conv1.weight"])
    assert torch.equal(weights(done)["fc.weight"], state["fc.weight"])
    start = record_at(done / "record.json")["config"]["start"]
    assert list(start) == ["sha256"]
    moved = path.rename("elsewhere.pth").resolve()
    assert "is done" in started(command, moved, *still).out, "named by content, not by place"
    assert command("train", *SHORT, "student=resnet8", *still).out.count("is done") == 1


def test_a_start_in_other_classes_gets_a_new_head(command):
    path = save(network(classes=7).state_dict())
    result = started(command, path)
    assert result.code == 0, result.err
    assert f"{path} has 7 classes, the data set 10: resnet8 gets a new head" in result.out


def test_a_timm_network_starts_from_a_local_file(command):
    import timm

    path = save(timm.create_model("test_resnet", num_classes=5).state_dict())
    foreign = ["student=timm", "student.model=test_resnet", f"student.checkpoint={path}"]
    result = command("train", *SHORT, *foreign)
    assert result.code == 0, result.err
    assert "5 classes, the data set 10: test_resnet gets a new head" in result.out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["student.checkpoint=nowhere.pth"],
            "there is none to choose from). Set student.",
        ),
        (["student.checkpoint_key=ema"], "student.checkpoint_key is of a file: set student.che"),
        (["student.checkpoint=3"], "student.checkpoint must be text, not 3"),
        (
            ["task=detection", "dataset=coco", "student.checkpoint=x"],
            "set student.backbone=FILE instead",
        ),
    ],
)
def test_a_start_that_cannot_be_is_one_line(command, words, line):
    assert line in command("train", *words).error_line


def test_a_teacher_that_is_trained_on_the_way_starts_from_none():
    taught = config("method=tfkd_self", "teacher=self", "student.checkpoint=x.pth")
    assert taught.start == Start("x.pth")
    assert "checkpoint" not in taught.teacher["self"].network.settings
    assert self_teacher(taught, taught.teacher["self"]).start is None


def test_runs_without_a_start_know_nothing_of_one():
    raw = config().spelt()
    assert "start" not in raw
    assert "checkpoint" not in raw["student"]
    assert check_train(raw).spelt() == raw
