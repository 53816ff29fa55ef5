"""Runs side by side: each ends with the bits that it has alone, and fails alone."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from kdbench.assembly.method_pages import recipes
from kdbench.errors import ConfigError, DivergedError, Interrupted
from kdbench.training.member import Member
from kdbench.training.together import train, train_together
from support.records import record_at
from support.runs import assert_same_runs, config, interrupt_at, runs, taught


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def teachers(here) -> list[str]:
    """Two trained teachers, and how a command names one or both."""
    folders = [train(config("student=resnet14", f"seed={seed}")) for seed in (0, 1)]
    return [str(folder) for folder in folders]


ONE_TEACHER = [
    name
    for name in recipes()
    if name not in {"aekd", "aver", "ca_mkd", "de_mkd", "ebkd", "fitnet_mkd"}
]
MIXED = ["ce", "kd", "crd", "mlkd", "dynamickd", "dot"]


def test_together_equals_alone(teachers):
    """Methods with banks, controllers, two views, two backward passes and no teacher at all."""
    for method in MIXED:
        train(taught(method, teachers, "runs_dir=alone"))
    jobs = train_together([taught(method, teachers, "runs_dir=together") for method in MIXED])
    assert not any(isinstance(job, Exception) for job in jobs)
    assert_same_runs("alone", "together")
    record = record_at(jobs[0] / "record.json")
    assert record["companions"] == len(MIXED) - 1
    assert record["seconds_share"] < record["seconds"] / 2, "both have one digit"


@pytest.mark.long  # tests/distillation/test_one_engine.py holds such a cohort against loops of one
def test_together_equals_alone_for_every_method(teachers):
    for method in ONE_TEACHER:
        train(taught(method, teachers, "runs_dir=alone"))
    jobs = train_together([taught(method, teachers, "runs_dir=together") for method in ONE_TEACHER])
    assert not any(isinstance(job, Exception) for job in jobs)
    assert_same_runs("alone", "together")


def test_a_stopped_cohort_goes_on_to_the_same_bits(teachers, monkeypatch):
    methods = ["kd", "crd", "dynamickd"]
    train_together([taught(method, teachers, "runs_dir=undisturbed") for method in methods])
    configs = [taught(method, teachers, "runs_dir=stopped") for method in methods]
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        with pytest.raises(Interrupted, match="goes on from there"):
            train_together(configs)
    # One of them goes on alone for a while, so that the others meet it no more.
    train(configs[0])
    train_together(configs)
    assert_same_runs("undisturbed", "stopped")


def test_one_that_fails_leaves_the_others_untouched(teachers, monkeypatch):
    methods = ["kd", "dkd", "wsld"]
    train_together([taught(method, teachers, "runs_dir=whole") for method in methods])
    broken = config(
        "method=logit_l2",
        "teacher=resnet14",
        f"teacher.resnet14.checkpoint={teachers[0]}",
        "teacher.resnet14.allow_chance=true",
        "method.l2_weight=1e38",
        "runs_dir=broken",
    )
    others = [taught(method, teachers, "runs_dir=broken") for method in methods]
    jobs = train_together([others[0], broken, *others[1:]])
    assert isinstance(jobs[1], DivergedError)
    assert not any(isinstance(job, Exception) for job in [jobs[0], *jobs[2:]])
    failed = runs("broken")["synthetic-resnet14-resnet8-logit_l2-s0"]
    assert record_at(failed / "record.json")["status"] == "failed"
    failed.rename("elsewhere")
    assert_same_runs("whole", "broken")


def test_one_that_cannot_be_set_up_leaves_the_others_untouched(teachers):
    unfit = taught("sp", teachers, "student=timm", "student.model=resnet18")
    alone = config("method=kd")  # without a teacher
    jobs = train_together([unfit, taught("kd", teachers), alone])
    assert isinstance(jobs[0], ConfigError)
    assert isinstance(jobs[2], ConfigError)
    assert record_at(jobs[1] / "record.json")["status"] == "done"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["schedule.batch_size=8"], r"schedule\.batch_size differs \(16, 8\)"),
        (["schedule.epochs=3"], r"schedule\.epochs differs \(2, 3\)"),
        (["seed=1"], r"seed differs \(0, 1\)"),
        (["dataset.pad=2"], r"dataset\.pad differs \(4, 2\)"),
        (["teacher.resnet14.checkpoint={other}"], r"teacher\.resnet14\.checkpoint differs"),
    ],
)
def test_runs_that_cannot_share_say_which_key_differs(teachers, overrides, named):
    other = [override.format(other=teachers[1]) for override in overrides]
    configs = [taught("kd", teachers), taught("kd", teachers, *other)]
    with pytest.raises(ConfigError, match=f"cannot train side by side: {named}"):
        train_together(configs)


def test_dropout_of_one_member_does_not_touch_another(teachers):
    """Torch's own generator is each member's own; a student with dropout draws from it."""
    timm = ["student=timm", "student.model=test_vit", "student.name=vit"]
    dropping = config("method=ce", *timm, "runs_dir=alone")
    train(dropping)
    train(taught("kd_pp", teachers, "runs_dir=alone"))
    train_together(
        [
            config("method=ce", *timm, "runs_dir=together"),
            taught("kd_pp", teachers, "runs_dir=together"),
        ]
    )
    assert_same_runs("alone", "together")


def test_teacher_forward_is_shared(teachers, monkeypatch):
    """K methods cost one teacher forward."""
    import kdbench.teachers.outputs

    calls = []
    original = kdbench.teachers.outputs.teacher_outputs

    def counted(networks, batch):
        calls.append(len(batch.labels))
        return original(networks, batch)

    monkeypatch.setattr(kdbench.teachers.outputs, "teacher_outputs", counted)
    configs = [taught(m, teachers, "runtime.teacher=live") for m in ("kd", "dkd", "at", "wsld")]
    train_together(configs)
    assert calls == [16, 16, 8] * 2
    assert torch.is_grad_enabled()


def test_one_view_and_two_views_share_the_teacher_s_pass_on_the_weak_view(teachers, monkeypatch):
    import kdbench.teachers.outputs

    for method in ("kd", "mlkd"):
        train(taught(method, teachers, "runs_dir=alone"))
    shapes = []
    original = kdbench.teachers.outputs.teacher_outputs

    def counted(networks, batch):
        shapes.append(tuple(batch.images.shape[:-3]))
        return original(networks, batch)

    monkeypatch.setattr(kdbench.teachers.outputs, "teacher_outputs", counted)
    train_together([taught(method, teachers, "runs_dir=together") for method in ("kd", "mlkd")])
    assert shapes == [(16,), (16,), (16,), (16,), (8,), (8,)] * 2
    assert_same_runs("alone", "together")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), KeyError("x")])
@pytest.mark.parametrize("place", ["score", "step"])
def test_whatever_befalls_one_member_is_its_own(here, monkeypatch, capsys, error, place):
    """Also while it is scored and recorded, and what it holds is let go of at once."""
    configs = [config(f"method={method}") for method in ("ce", "label_smoothing")]
    train_together([replace(one, runs_dir="undisturbed") for one in configs])
    step, scored, held = Member.step, Member.scored, []

    def fails(*inputs):
        activations = torch.zeros(3)
        held.append(weakref.ref(activations))
        raise error

    def failing_step(member, *inputs):
        doomed = "-ce-" in member.run_id and member.state.step == 4
        return fails() if doomed else step(member, *inputs)

    def failing_networks(member):
        networks = scored(member)
        if "-ce-" in member.run_id and member.state.step == 6:
            networks[0].forward = fails
        return networks

    with monkeypatch.context() as patch:
        if place == "step":
            patch.setattr(Member, "step", failing_step)
        else:
            patch.setattr(Member, "scored", failing_networks)
        failed, folder = train_together(configs)
    assert failed is error
    gc.collect()
    assert held[0]() is None, "its memory is the others'"
    assert record_at(folder / "record.json")["status"] == "done"
    record = record_at(runs()["synthetic-none-resnet8-ce-s0"] / "record.json")
    assert (record["status"], record["error"]) == ("failed", str(error))
    assert "-ce-s0" in capsys.readouterr().out.split(" failed: ")[0].splitlines()[-1]
    train_together(configs)
    assert_same_runs("undisturbed", "runs")


def test_a_result_stays_where_telling_of_it_fails(here, monkeypatch):
    configs = [config(f"method={method}") for method in ("ce", "label_smoothing")]
    error = ValueError("of a logger")

    def record(logger, record):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("kdbench.tracking.run_logger.RunLogger.record", record)
        assert train_together(configs) == [error, error]
    for folder in runs().values():
        assert record_at(folder / "record.json")["status"] == "done"
