"""A sweep as a campaign: the order of worth, the time that it may take, and others who help."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import kdbench.sweeps.budget
from chaos.processes import wait_until
from kdbench.errors import ConfigError
from kdbench.records.checkpoint import checkpoint_paths
from kdbench.sweeps.budget import START_UP, Budget
from kdbench.sweeps.planning import plan
from kdbench.sweeps.settings import Settings
from kdbench.sweeps.worth import Worth
from kdbench.system.console import Console
from kdbench.system.locks import RunLock
from kdbench.training.timings import Timings
from support.kills import at_first_checkpoint
from support.records import make_record, write_content
from support.runs import SMALL, TWO_EPOCHS, config, runs

CAMPAIGN = ["-m", *SMALL, "student=resnet8", "hydra/launcher=cohort", "hydra.launcher.order=value"]
LABELS = "method=ce,label_smoothing"
TAUGHT = [
    *CAMPAIGN,
    *("teacher=resnet8", "teacher.resnet8.checkpoint=train"),
    *("teacher.resnet8.allow_chance=true", "method=kd,ce"),
    *("schedule.epochs=12", "schedule.milestones=[]", "hydra.launcher.minutes=30"),
]


def cost(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """Let a step of each method take so many seconds."""

    def time_run(config, *_):
        return Timings(seconds[config.method.name], 0.0, 0.0)

    monkeypatch.setattr(kdbench.sweeps.budget, "time_run", time_run)


def order(methods: list[str], seeds: list[int], headline: int | None) -> list[list[str]]:
    """The names of a sweep's runs, stage by stage."""
    one = config("teacher=resnet14", "teacher.resnet14.checkpoint=FILE")
    students = [one.student, replace(one.student, name="resnet14")]
    configs = [
        replace(one, method=replace(one.method, name=method), seed=seed, student=student)
        for student in students
        for method in methods
        for seed in seeds
    ]
    jobs = [SimpleNamespace(config=one) for one in reversed(configs)]
    return [
        [f"{one.config.student.name} {one.config.method.name} {one.config.seed}" for one in stage]
        for stage in Worth(configs, headline).stages(jobs)
    ]


def test_the_order_of_worth():
    first, baselines, turns, others, *next_pair = order(["kd", "dkd", "ce", "at"], [0, 1, 2], 2)
    assert first == ["resnet8 kd 0", "resnet8 dkd 0", "resnet8 ce 0"]
    assert baselines == [f"resnet8 {name} {seed}" for seed in (1, 2) for name in ("kd", "ce")]
    assert turns == ["resnet8 dkd 1", "resnet8 dkd 2"]
    assert others == ["resnet8 at 0", "resnet8 at 1", "resnet8 at 2"]
    assert [stage[0] for stage in next_pair] == [
        *("resnet14 kd 0", "resnet14 kd 1", "resnet14 dkd 1", "resnet14 at 0")
    ]
    assert order(["kd", "at"], [7], None)[0] == ["resnet8 kd 7", "resnet8 at 7"]


@pytest.mark.slow
def test_a_campaign_is_killed_and_goes_on(command, tmp_path):
    """The command itself, with the cost that is measured here."""
    typed = [sys.executable, "-m", "kdbench.train", *TAUGHT]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(typed, cwd=tmp_path, **quiet) as process:
        wait_until(
            lambda: list(Path("runs").glob("synthetic-none-resnet8-ce-s1000-*/checkpoint-*")),
            lambda: None if process.poll() is None else "it has ended",
        )
        process.kill()
    (teacher,) = runs().values()
    wait_until(lambda: is_free(teacher))
    result = command("train", *TAUGHT)
    assert result.code == 0, result.err
    assert "teachers first: 1 run: 1 go on from a checkpoint" in result.out
    assert "cohort 2 starts: 2 runs, synthetic-" in result.out
    assert "campaign: 2 done, 0 done before, 0 failed, 0 left" in result.out
    for name in ("synthetic-none-resnet8-ce-s0", "synthetic-resnet8-resnet8-kd-s0"):
        assert f"done: {runs()[name].name}, top-1 " in result.out
    again = command("train", *TAUGHT)
    assert "campaign: 0 done, 2 done before, 0 failed, 0 left" in again.out


def is_free(folder: Path) -> bool:
    """Whether nobody trains a run."""
    try:
        RunLock(folder).release()
    except Exception:
        return False
    return True


def test_at_the_end_of_the_time_there_are_checkpoints_and_it_is_said_what_is_next(
    command, monkeypatch
):
    budgets, made = [], Budget.__init__
    monkeypatch.setattr(Budget, "__init__", lambda *a: (made(*a), budgets.append(a[0]))[0])
    at_first_checkpoint(monkeypatch, lambda worker: setattr(budgets[0], "ends", time.monotonic()))
    cost(monkeypatch, ce=0.0001, label_smoothing=1.0)
    epochs = ["schedule.epochs=3000", "schedule.milestones=[]"]
    result = command("train", *CAMPAIGN, *epochs, LABELS, "hydra.launcher.minutes=10")
    assert result.code == 0, result.err
    (begun,) = runs().values()
    assert begun.name.startswith("synthetic-none-resnet8-ce-s0-")
    assert checkpoint_paths(begun)
    assert "label_smoothing" not in result.out.partition("timing label_smoothing")[2]
    *_, total, following, then, last = result.out.splitlines()
    assert total.startswith("campaign: 0 done, 0 done before, 0 failed, 2 left; ")
    assert following.startswith(f"next: {begun.name}, about ")
    assert then.startswith("then 1 run; about 2.5 h here")
    assert last == "the same command goes on from there"


def test_what_cannot_end_in_time_is_left_out_and_the_rest_of_its_cohort_trains(
    command, monkeypatch
):
    cost(monkeypatch, ce=0.01, label_smoothing=1000.0)
    result = command("train", *CAMPAIGN, *TWO_EPOCHS, LABELS, "hydra.launcher.minutes=10")
    assert result.code == 0, result.err
    assert list(runs()) == ["synthetic-none-resnet8-ce-s0"]
    assert "campaign: 1 done, 0 done before, 0 failed, 1 left" in result.out
    assert "next: synthetic-none-resnet8-label_smoothing-s0-" in result.out
    assert "\nthen " not in result.out


def test_a_time_that_is_too_short_for_any_run(command, monkeypatch):
    cost(monkeypatch, ce=1.0, label_smoothing=2.0)
    result = command("train", *CAMPAIGN, *TWO_EPOCHS, LABELS, "hydra.launcher.minutes=0.2")
    assert result.code == 1
    assert result.error_line.startswith(
        "hydra.launcher.minutes=0.2 is too short for any of 2 runs: the cheapest, "
        "synthetic-none-resnet8-ce-s0-"
    )
    assert result.error_line.endswith("takes about 16 s on this machine")
    assert not runs()
    none = command("train", *CAMPAIGN, *TWO_EPOCHS, LABELS, "hydra.launcher.minutes=1e-9")
    assert "is too short to time a single run: give more" in none.error_line


def test_a_cluster_keeps_the_time_by_itself():
    with pytest.raises(ConfigError, match="is for executor=local, not ray"):
        Settings(minutes=5.0, executor="ray")


def test_no_clock_that_is_set_changes_the_time_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cost(monkeypatch, ce=1.0)
    budget, (job,) = Budget(1.0, Console()), plan([config("method=ce")]).todo
    monkeypatch.setattr(time, "time", lambda: -1e9)
    assert 50 < budget.left <= 60
    assert budget.fitting([job, job, job]) == [job] * 3
    budget.learn([job], 3 * (START_UP + 6.0))
    assert budget.seconds([job]) == pytest.approx(48), "cohorts take three times what was thought"
    assert budget.fitting([job, job]) == [job]


def test_a_configuration_that_cannot_be_timed_is_tried_all_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cost(monkeypatch)
    budget, (job,) = Budget(1.0, Console()), plan([config("method=ce")]).todo
    assert budget.fitting([job]) == [job]
    assert budget.timed([job]) == []


def test_others_on_one_folder_and_what_they_left_there(command, tmp_path):
    """A run that another process trains, one that is done elsewhere, and a copy that is torn."""
    jobs = {(one.config.method.name, one.config.seed): one for one in every_run()}
    for folder in (jobs["ce", 0].folder, jobs["ce", 1].folder):
        folder.mkdir(parents=True)
    (jobs["ce", 1].folder / "record.json").write_text('{"format": 2, "run')
    done = jobs["label_smoothing", 0].identity
    other = make_record("ce", student="resnet8", teacher="none", dataset="synthetic", epochs=99)
    record = make_record("label_smoothing", student="resnet8", teacher="none", dataset="synthetic")
    record |= {"run_id": done.run_id, "cell": done.cell, "hash": done.hash}
    (tmp_path / "results" / "runs").mkdir(parents=True)
    write_content(other, tmp_path / "results" / "runs" / f"{other['run_id']}.json")
    write_content(record, tmp_path / "runs" / f"{record['run_id']}.json")
    lock = RunLock(jobs["ce", 0].folder)
    try:
        result = command("train", *CAMPAIGN, *TWO_EPOCHS, LABELS, "seed=0,1")
    finally:
        lock.release()
    held = f"{jobs['ce', 0].folder.name} is being trained by process {os.getpid()} on "
    assert f"elsewhere: {held}" in result.out
    assert "campaign: 1 done, 1 done before, 1 failed, 1 left" in result.out
    assert "runs of resnet8 on synthetic follow 2 protocols, which are never compared" in result.out
    assert result.code == 1
    lines = result.err.splitlines()
    assert len(lines) == 3, "at once, in the summary, and the end"
    assert all("record.json is not a record: restore it" in line for line in lines[:2])
    assert "1 of 4 runs have no result" in lines[2]
    assert not (jobs["label_smoothing", 0].folder).exists()
    (jobs["ce", 1].folder / "record.json").unlink()
    again = command("train", *CAMPAIGN, *TWO_EPOCHS, LABELS, "seed=0,1")
    assert again.code == 0, again.err
    assert "campaign: 2 done, 2 done before, 0 failed, 0 left" in again.out


def every_run():
    methods = ("ce", "label_smoothing")
    return plan([config(f"method={m}", f"seed={s}") for m in methods for s in (0, 1)]).todo
