"""Students that train as one network: each with the result that it has alone, to rounding."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from chaos.compare import CLOSE, distance
from kdbench.errors import ConfigError, DivergedError, Interrupted
from kdbench.networks.resnet import ResNet
from kdbench.networks.stacked import Stacked
from kdbench.system.runtime import Runtime
from kdbench.training.fused import Fused
from kdbench.training.together import train, train_together
from support.records import record_at
from support.runs import config, runs, same, taught, weights

TEN = ["ce", "kd", "dkd", "dynamickd", "crd", "at", "reviewkd", "er_kd", "ls_kd", "vid"]
BESIDE = ["dot", "simkd", "mlkd"]  # two backward passes, a student of its own, two views
FUSED = "runtime.fused=on"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("teacher")
    return str(train(config("student=resnet14", "seed=1", f"runs_dir={folder}")))


@pytest.fixture
def run(teacher, tmp_path, monkeypatch):
    """Train these methods side by side in a folder; return what comes of each."""
    monkeypatch.chdir(tmp_path)

    def together(methods: list[str], where: str, *overrides: str) -> list[Path | Exception]:
        named = [f"runs_dir={where}", *overrides]
        return train_together([taught(method, [teacher], *named) for method in methods])

    return together


def fused_in(folder: Path) -> int | None:
    return record_at(folder / "record.json").get("fused")


def test_ten_methods_as_one_network_end_as_each_alone(run):
    """Three steps in float32, with momentum, decay and a short batch."""
    alone = run(TEN + BESIDE, "alone", "schedule.epochs=1", "runtime.fused=off")
    fused = run(TEN + BESIDE, "fused", "schedule.epochs=1", FUSED)
    for method, one, other in zip(TEN + BESIDE, alone, fused, strict=True):
        assert fused_in(one) is None
        assert fused_in(other) == (None if method in BESIDE else len(TEN)), method
        assert distance(one, other) <= (0 if method in BESIDE else CLOSE), method


def test_every_parameter_has_the_gradient_of_its_own_loss(teacher, monkeypatch):
    """Students' and methods' own, also where a loss reaches only some of them."""
    monkeypatch.setattr(Fused, "differentiate", checked(Fused.differentiate))
    monkeypatch.chdir(Path(teacher).parent)
    short = "schedule.epochs=1", "runs_dir=checked"
    found = train_together([taught(m, [teacher], FUSED, *short) for m in TEN[:7]])
    assert not any(isinstance(one, Exception) for one in found)


def checked(original):
    """`Fused.differentiate`, with every gradient held against that of the run's loss alone."""

    def differentiate(fused, losses):
        stacked = fused.stack.trained
        expected = {}
        for member in fused.members:
            own = [*stacked.values(), *member.method.parameters()]
            loss = losses[member.run_id].total()
            found = torch.autograd.grad(loss, own, retain_graph=True, allow_unused=True)
            expected[member.run_id] = found
        original(fused, losses)
        for place, member in enumerate(fused.members):
            found = expected[member.run_id]
            for name, gradient in zip(stacked, found, strict=False):
                others = [i for i in range(len(fused.members)) if i != place]
                actual = member.network.get_parameter(name).grad
                if gradient is None:
                    assert actual is None, name
                    continue
                assert not gradient[others].any(), "a loss moves its own student alone"
                torch.testing.assert_close(actual, gradient[place], rtol=1e-4, atol=1e-5)
            own = member.method.parameters()
            for parameter, gradient in zip(own, found[len(stacked) :], strict=True):
                torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)

    return differentiate


def test_a_run_that_diverges_leaves_the_others_their_bits(run):
    methods = ["kd", "dkd", "ce"]
    run(methods, "sound", FUSED)
    failed = run_with_one_mad(run)
    assert isinstance(failed, DivergedError)
    for name, folder in runs("sound").items():
        if "-ce-" not in name:
            assert same(weights(folder), weights(runs("odd")[name])), name


def test_a_first_step_that_fails_leaves_no_trace(run, monkeypatch):
    """As of a recipe that reads what the stack does not give: banks, statistics, draws."""
    methods = ["crd", "kd"]
    run(methods, "alone", "runtime.fused=off")

    def differentiate(fused, losses):
        raise KeyError("a tap")

    monkeypatch.setattr(Fused, "differentiate", differentiate)
    run(methods, "tried", FUSED)
    for name, folder in runs("alone").items():
        assert same(weights(folder), weights(runs("tried")[name])), name


def run_with_one_mad(run) -> Path | Exception:
    """Train kd, dkd and ce in the folder "odd", with a loss of ce that is not finite in step 2."""
    original = Fused.differentiate
    count = 0

    def differentiate(fused, losses):
        nonlocal count
        count += 1
        if count == 2:
            (name,) = (name for name in losses if "-ce-" in name)
            losses[name] = losses[name].times(float("nan"))
        original(fused, losses)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fused, "differentiate", differentiate)
        *_, failed = run(["kd", "dkd", "ce"], "odd", FUSED)
    return failed


@pytest.mark.parametrize(
    ("before", "after"), [pytest.param("on", "off", marks=pytest.mark.long), ("off", "on")]
)
def test_a_checkpoint_is_that_of_a_run_alone(run, monkeypatch, before, after):
    """Stopped fused and resumed alone, and the other way round; then in a cohort of two."""
    methods = ["kd", "crd", "dynamickd"]
    run(methods, "undisturbed", "runtime.fused=off")
    with monkeypatch.context() as patch:
        interrupt_in_step(4, patch)
        with pytest.raises(Interrupted, match="after step 4"):
            run(methods, "stopped", f"runtime.fused={before}")
    run(methods[:2], "stopped", f"runtime.fused={after}")
    run(methods, "stopped", f"runtime.fused={after}")
    for name, folder in runs("undisturbed").items():
        assert distance(folder, runs("stopped")[name]) <= CLOSE, name


def interrupt_in_step(step: int, patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a step of the cohort, whoever computes it."""
    from kdbench.training.cohort import Cohort

    original = Cohort.train_step

    def counted(cohort, *arguments):
        if cohort.step == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(cohort, *arguments)

    patch.setattr(Cohort, "train_step", counted)


def test_losses_that_raise_are_their_own_run_s_failure(run, monkeypatch, capsys):
    from kdbench.methods.dkd import DKD

    original, count = DKD.forward, 0

    def forward(*arguments):
        nonlocal count
        count += 1
        if count >= 3:
            raise ValueError("no such class")
        return original(*arguments)

    monkeypatch.setattr(DKD, "forward", forward)
    kd, dkd, ce = run(["kd", "dkd", "ce"], "runs", FUSED)
    assert isinstance(dkd, ValueError)
    assert "3 students train one by one: no such class" in capsys.readouterr().out
    for folder in (kd, ce):
        assert record_at(folder / "record.json")["status"] == "done"
        assert fused_in(folder) is None, "not to the end"


def test_students_that_draw_random_numbers_train_one_by_one(run, monkeypatch, capsys):
    original = ResNet.forward

    def noisy(network, images):
        output = original(network, images)
        return output._replace(logits=nn.functional.dropout(output.logits, 0.5, network.training))

    monkeypatch.setattr(ResNet, "forward", noisy)
    found = run(["kd", "ce"], "runs", FUSED)
    assert not any(isinstance(one, Exception) for one in found)
    assert "2 students train one by one: vmap: called random operation" in capsys.readouterr().out


LABELS_ALONE = ["method=ce", "method=label_smoothing"]


@pytest.fixture
def run_two(tmp_path, monkeypatch):
    """Train two runs without a teacher, for an epoch."""
    monkeypatch.chdir(tmp_path)
    short = FUSED, "schedule.epochs=1"
    return lambda: train_together([config(method, *short) for method in LABELS_ALONE])


def test_a_stack_of_other_logits_than_its_students_is_not_trained(run_two, monkeypatch, capsys):
    original = Stacked.forward

    def off(stack, buffers, images):
        logits, taps = original(stack, buffers, images)
        return torch.stack([logits[0], 2 * logits[1]]), taps

    monkeypatch.setattr(Stacked, "forward", off)
    folders = run_two()
    said = capsys.readouterr().out
    assert "2 students train one by one: the logits of synthetic-none-resnet8-label_smoo" in said
    assert " are off by 1.0e+00" in said
    assert [fused_in(folder) for folder in folders] == [None, None]


def test_a_stack_that_does_not_compile_trains_uncompiled(run_two, monkeypatch, capsys):
    """As on a GPU, where the compiler runs at the first batch."""

    def compiled(*_: object, **__: object):
        def fails(*_: object):
            raise RuntimeError("no ptxas\nhere")

        return fails

    monkeypatch.setattr("kdbench.training.fused.compiles", lambda *_: True)
    monkeypatch.setattr("kdbench.networks.stacked.compiled", compiled)
    folders = run_two()
    said = capsys.readouterr().out
    assert "2 students as one are not compiled: no ptxas" in said
    assert "one by one" not in said
    assert [fused_in(folder) for folder in folders] == [2, 2]


def test_a_lone_run_trains_as_it_does(run):
    (folder,) = run(["kd"], "lone", FUSED)
    assert fused_in(folder) is None


def test_exact_refuses():
    with pytest.raises(ConfigError, match=r"runtime\.fused=on .* set runtime\.fused=off"):
        Runtime(device="cpu", exact=True, fused="on")
