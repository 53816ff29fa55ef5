"""`runtime=exact`: the bits of an undisturbed run, or a line that says why not."""

import json
from pathlib import Path
from random import Random

import pytest
import torch

import kdbench.training.member
from chaos.compare import differences
from kdbench.assembly.build import build_method
from kdbench.assembly.method_pages import recipes
from kdbench.errors import ConfigError, Interrupted
from kdbench.system.runtime import Runtime
from kdbench.training.together import train, train_together
from support.kills import Killed, at_step, kill
from support.runs import config, interrupt_at, runs

# Batches of 24, 24 and 16 images: from 16 up cached outputs are the live ones.
EXACT = [
    *("dataset.num_train=64", "schedule.batch_size=24", "runtime=exact", "runtime.device=cpu"),
    "runtime.checkpoint_steps=2",
]
STEPS = 6
TEACHERS = ("resnet14", "wrn_16_1")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def teachers() -> dict[str, Path]:
    return {name: train(config(*EXACT, f"student={name}")) for name in TEACHERS}


def exact(method: str, teachers: dict[str, Path], *overrides: str) -> dict:
    """A run of a method with as many teachers as it reads."""
    count = build_method(compose(method), 0).num_teachers
    names = TEACHERS[: len(TEACHERS) if count is None else count]
    named = [f"teacher=[{','.join(names)}]"] if names else []
    named += [f"teacher.{name}.checkpoint={teachers[name]}" for name in names]
    named += [f"teacher.{name}.allow_chance=true" for name in names]
    return config(*EXACT, f"method={method}", *named, *overrides)


def compose(method: str) -> dict:
    return config(f"method={method}").method


def break_off(configs: list[dict], random: Random, monkeypatch) -> None:
    """Stop the runs at a random step, by Ctrl-C or as kill -9 would."""
    how, step = random.choice(["Ctrl-C", "kill -9"]), random.randint(1, STEPS * len(configs))
    with monkeypatch.context() as patch:
        if how == "Ctrl-C":
            interrupt_at(step, patch)
        else:
            at_step(step, kill, patch)
        try:
            train_together(configs)
        except (Interrupted, Killed):
            return
    assert how == "Ctrl-C", "the last step was under way, and the run was finished"


def assert_undisturbed(
    methods: list[str], teachers, source: str, monkeypatch, every: int = 1
) -> None:
    """Together, and each `every`-th alone, broken off and resumed: all as alone, live, at once."""
    random = Random(f"{methods} {source}")
    alone = {name: train(exact(name, teachers, "runtime.teacher=live")) for name in methods}
    given = [f"runtime.teacher={source}"]
    singles = [[name] for name in methods[source == "auto" :: every]]
    for where, groups in (("one", singles), ("all", [methods])):
        for group in groups:
            configs = [exact(name, teachers, *given, f"runs_dir={where}") for name in group]
            break_off(configs, random, monkeypatch)
            found = train_together(configs)
            for name, folder in zip(group, found, strict=True):
                assert isinstance(folder, Path), folder
                assert differences(alone[name], folder) == [], (name, where, source)


def test_broken_off_and_resumed_runs_end_with_the_same_bits(teachers, monkeypatch):
    """A bank and draws; a buffer for each loss."""
    assert_undisturbed(["crd", "dot"], teachers, "live", monkeypatch)


def test_so_do_those_that_learn_from_tables(teachers, monkeypatch):
    assert_undisturbed(["ctkd"], teachers, "table", monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("source", ["live", "auto"])  # alone under one of them, in turn
def test_every_method_ends_with_the_same_bits(teachers, monkeypatch, source):
    counts = {name: build_method(compose(name), 0).num_teachers for name in recipes()}
    for wanted in (0, 1, None, 2):
        fit = [name for name, count in counts.items() if count == wanted]
        if fit:
            assert_undisturbed(fit, teachers, source, monkeypatch, every=2)


def started(monkeypatch, *overrides: str) -> Path:
    """The folder of a run that was stopped after some steps."""
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        with pytest.raises(Interrupted):
            train(config(*overrides))
    return next(iter(runs().values()))


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (["runtime.threads=2"], "with threads 1, not 2: set runtime.threads=1"),
        (
            ["runtime.channels_last=false", "runtime.compile=auto"],
            "with channels_last True, not False, compile off, not auto: set "
            "runtime.channels_last=true; set runtime.compile=off",
        ),
    ],
)
def test_it_does_not_go_on_under_other_settings(monkeypatch, changed, line):
    folder = started(monkeypatch, *EXACT)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(ConfigError) as refused:
        train(config(*EXACT, *changed))
    wanted = f"{folder.name} was started under runtime=exact {line}, or remove {folder}"
    assert str(refused.value) == f"{wanted} to start anew"
    after = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {**after, folder / ".lock": 0} == {**before, folder / ".lock": 0}
    torch.set_num_threads(1)
    assert train(config(*EXACT)) == folder


@pytest.mark.parametrize(
    ("fact", "value", "mend"),
    [
        ("torch", "2.0.0", "install torch 2.0.0"),
        ("instruction_set", "VSX", "ATEN_CPU_CAPABILITY=vsx"),
        ("cpu", "another", "go on there"),
    ],
)
def test_nor_on_another_machine(monkeypatch, fact, value, mend):
    original = kdbench.training.member.exact_facts
    with monkeypatch.context() as patch:
        patch.setattr(
            kdbench.training.member, "exact_facts", lambda r: {**original(r), fact: value}
        )
        folder = started(monkeypatch, *EXACT)
    facts = json.loads((folder / "exact.json").read_text())
    assert facts[fact] == value
    assert facts.keys() == original(Runtime(device="cpu", exact=True)).keys()
    with pytest.raises(ConfigError, match=f"with {fact} {value}, not .*{mend}"):
        train(config(*EXACT))


def test_exact_and_other_runtimes_do_not_continue_each_other(monkeypatch):
    folder = started(monkeypatch, *EXACT)
    fast = ["dataset.num_train=64", "schedule.batch_size=24"]
    with pytest.raises(ConfigError, match="was started under runtime=exact: go on with it"):
        train(config(*fast))
    assert train(config(*EXACT)) == folder
    other = started(monkeypatch, *fast, "runs_dir=fast", "seed=1")
    with pytest.raises(ConfigError, match="was not started under runtime=exact"):
        train(config(*EXACT, "runs_dir=fast", "seed=1"))
    assert other.exists()


def test_an_exact_run_has_the_name_that_it_has_elsewhere():
    fast = train(config("dataset.num_train=64", "schedule.batch_size=24", "runs_dir=fast"))
    assert train(config(*EXACT)).name == fast.name
    assert torch.are_deterministic_algorithms_enabled()


def test_tables_of_exact_runs_are_their_own(teachers):
    for overrides in (EXACT, ["dataset.num_train=64", "schedule.batch_size=24"]):
        named = [
            "teacher=resnet14",
            f"teacher.resnet14.checkpoint={teachers['resnet14']}",
            "teacher.resnet14.allow_chance=true",
        ]
        where = "exact" if overrides is EXACT else "fast"
        given = [f"runs_dir={where}", "runtime.table_dir=tables"]
        train(config(*overrides, "method=kd", *named, *given))
    tables = [json.loads(path.read_text()) for path in Path("tables").glob("*/table.json")]
    assert sorted("exact" in table for table in tables) == [False, True]
