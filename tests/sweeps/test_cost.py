"""`python -m kdbench.estimate` says what a sweep will do and cost, and does nothing."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kdbench.config import hydra_cli
from kdbench.system.console import duration
from kdbench.tasks.classification import rehearsal
from kdbench.training import timings
from kdbench.training.timings import Timings

DATA = [
    "dataset=synthetic",
    "dataset.num_classes=10",
    "dataset.num_train=64",
    "dataset.num_test=32",
    "schedule.batch_size=16",
    "runtime=cpu",
]


@pytest.fixture
def fast(monkeypatch):
    """One timed step, on one thread."""
    monkeypatch.setattr(timings, "STEPS", 1)
    monkeypatch.setattr(rehearsal, "TEST_IMAGES", 16)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def last_total(text: str) -> list[str]:
    return [line for line in text.splitlines() if "teachers live" in line or "in cohorts" in line]


def test_a_sweep_is_composed_as_hydra_would():
    jobs = hydra_cli.compose_jobs("config", ["+experiments=quickstart"])
    assert len(jobs) == 9
    assert {(job["method"]["name"], job["seed"]) for job in jobs} == {
        (method, seed) for method in ("ce", "kd", "dkd") for seed in (0, 1, 2)
    }
    fewer = hydra_cli.compose_jobs("config", ["+experiments=quickstart", "seed=5", "method=kd,at"])
    assert [(job["method"]["name"], job["seed"]) for job in fewer] == [("kd", 5), ("at", 5)]
    assert len(hydra_cli.compose_jobs("config", ["-m", "method=ce,kd", "seed=0,1"])) == 4
    assert len(hydra_cli.compose_jobs("config", [])) == 1


def test_the_quickstart_is_listed_and_nothing_is_started(command, fast):
    result = command("estimate", "+experiments=quickstart", "runtime=cpu")
    assert result.code == 0, result.err
    assert "9 runs: 0 done, 0 to resume, 3 to do, 6 waiting for a teacher" in result.out
    assert "no checkpoint digits-none-resnet20-ce-s0" in result.out
    assert len(last_total(result.out)) == 2
    order = ("9 runs: ", "teachers live", "in cohorts", "method  ", "\nkd ")
    assert sorted(order, key=result.out.index) == list(order), "totals first"
    progress = [re.sub("about .* left", "about x left", line) for line in result.err.splitlines()]
    names = enumerate(("ce", "kd", "dkd"), 1)
    assert [line.rstrip() for line in progress] == [
        f"timing {i} of 3, about x left: {name}" for i, name in names
    ]
    assert not list(Path().rglob("*.*"))


def test_done_and_begun_runs_are_recognised(command, fast):
    assert command("train", *DATA, "student=resnet8", "seed=0").code == 0
    (record,) = Path("runs").glob("*/record.json")
    (begun,) = [Path("runs") / record.parent.name.replace("-s0-", "-s1-")]
    begun.mkdir()
    (begun / "checkpoint-00000004.safetensors").touch()  # of 8 steps
    result = command("estimate", *DATA, "student=resnet8", "seed=0,1,2", "--names")
    assert result.code == 0, result.err
    assert "3 runs: 1 done, 1 to resume, 1 to do, 0 waiting" in result.out
    assert "to resume, 50% left" in result.out
    again = command("estimate", *DATA, "student=resnet8", "seed=0", "-m")
    assert begun.name not in again.out, "names are on demand"
    assert "1 runs: 1 done" in again.out
    assert not last_total(again.out)


def test_a_teacher_that_is_trained_on_the_way_is_a_run_of_its_own(command, fast):
    named = ["method=tfkd_self", "teacher=resnet8", "teacher.resnet8.checkpoint=train"]
    result = command("estimate", *DATA, *named, "student=resnet8", "seed=0,1")
    assert result.code == 0, result.err
    assert "3 runs: 0 done, 0 to resume, 1 to do, 2 waiting for a teacher" in result.out
    assert "it is trained first" in result.out


def test_the_smoke_sweep_needs_no_data(command, fast, monkeypatch):
    """Every kind of method is counted; timing one of each kind is enough here."""
    seen = []
    original = timings.time_run

    def some(config, dataset, runtime, known):
        seen.append(config.method.name)
        if config.method.name in ("crd",):
            return original(config, dataset, runtime, known)
        return Timings(0.1, 0.05, 0.001)

    monkeypatch.setattr("kdbench.sweeps.cost.time_run", some)
    result = command("estimate", "+experiments=smoke_cifar100", "dataset.root=nowhere")
    assert result.code == 0, result.err
    assert "stood in for by random images" in result.out
    assert "54 runs" in result.out
    assert len(seen) == len(set(seen)) == 54


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["+experiments=quikstart"], "did you mean 'quickstart'?"),
        (["+experiments=quickstart", "methd=kd"], "did you mean 'method'?"),
        (["method=kd,dkdd"], "did you mean 'dkd'?"),
        (["method=kd"], "method kd reads 1 teacher(s), not 0"),
        (["dataset=image_folder", "dataset.root=nowhere"], "nowhere"),
        (["dataset=imagenet", "dataset.root=nowhere"], "imagenet is not in"),
    ],
)
def test_bad_input_is_one_line(command, arguments, expected):
    assert expected in command("estimate", *arguments).error_line


def test_help_says_what_there_is(command):
    result = command("estimate", "--help")
    assert result.code == 0
    for word in ("KEY=VALUE", "--names", "kdbench-train"):
        assert word in result.out


def test_a_slow_step_is_timed_once(monkeypatch):
    seconds = []
    monkeypatch.setattr(timings, "seconds_of", lambda call, device: seconds.append(5.0) or 5.0)
    assert timings._median(lambda: None, torch.device("cpu")) == 5.0
    assert seconds == [5.0]


def test_teacher_and_evaluation_are_timed_once_for_all_methods(command, fast, monkeypatch):
    calls = []
    original = timings._median
    monkeypatch.setattr(timings, "_median", lambda *a: calls.append(a) or original(*a))
    named = ["teacher=resnet8", "student=resnet8", "method=kd,dkd,at"]
    assert command("estimate", *DATA, *named, "seed=0,1").code == 0
    assert len(calls) == 3 + 1 + 1, "a step of each method, one teacher, one evaluation"


def test_durations_are_readable():
    assert [duration(s) for s in (3.2, 600, 7200)] == ["3 s", "10 min", "2.0 h"]


def test_a_run_whose_step_fails_is_not_timed():
    member = SimpleNamespace(error=ValueError("of its method"), method=None)
    batches = SimpleNamespace(steps=lambda *_: [])
    cohort = SimpleNamespace(batches=batches, members=[member])
    with pytest.raises(ValueError, match="of its method"):
        timings._one_step(cohort)
