"""Precision is a setting of the recipe: it changes results and names, and little accuracy."""

import statistics
from contextlib import suppress
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from kdbench.assembly.evaluation import evaluate
from kdbench.assembly.make import make
from kdbench.errors import ConfigError
from kdbench.methods.ce import CE
from kdbench.networks import resnet
from kdbench.networks.resnet import resnet8
from kdbench.records.identity import identify
from kdbench.records.passport import read_passport
from kdbench.system.precision import (
    Precision,
    advice,
    allow_tf32,
    arithmetic,
    at_precision,
    notices,
)
from kdbench.tasks.classification.losses import losses_and_sums
from kdbench.tasks.classification.task import Classification
from kdbench.training.optimizer import Optimizer, align_gradients
from kdbench.training.schedule import Schedule
from kdbench.training.step import train_step
from kdbench.training.timings import time_run
from kdbench.training.together import train, train_together
from support.batches import batch_of, dataset
from support.commands import ROOT, compose
from support.records import record_at
from support.runs import config, same, weights

RECORDS = sorted((ROOT / "results" / "runs").glob("*.json"))


def name_of(record: dict, *overrides: str) -> str:
    """The run that a record's own command would be today."""
    kept = record["config"]
    groups = [f"{group}={kept[group]['name']}" for group in ("method", "student", "dataset")]
    groups += [f"schedule={kept['schedule']['name']}", f"seed={record['seed']}"]
    groups += [f"schedule.precision={kept['schedule'].get('precision', 'fp32')}"]
    groups += [f"teacher={name}" for name in kept["teacher"]]
    found, data = compose(*groups, *overrides), record["data"]
    sha256 = {
        key: teacher["sha256"]
        for key, teacher in zip(kept["teacher"], record["teachers"], strict=True)
    }
    return identify(found, data["name"], data["sha256"], sha256).run_id


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_earlier_runs_keep_their_names(path):
    record = record_at(path)
    assert name_of(record) == record["run_id"] == path.stem
    assert name_of(record, "runtime.compile=off") == record["run_id"]
    own = record["config"]["schedule"].get("precision", "fp32")
    others = [f"precision={name}" for name in get_args(Precision) if name != own]
    for change in (*others, "table_precision=fp16", "warmup_epochs=2"):
        assert name_of(record, f"schedule.{change}") != record["run_id"]


def test_bfloat16_is_of_the_forward_pass_alone():
    network = at_precision(resnet8(num_classes=10), "bf16").train()
    output = network(torch.randn(4, 3, 32, 32))
    assert {tensor.dtype for tensor in (output.logits, *output.taps.values())} == {torch.float32}
    output.logits.sum().backward()
    parameters = list(network.parameters())
    assert {p.dtype for p in parameters} == {p.grad.dtype for p in parameters} == {torch.float32}
    assert torch.equal(output.logits, output.logits.bfloat16().float()), "computed in bfloat16"
    plain = resnet8(num_classes=10)
    assert at_precision(plain, "fp32") is at_precision(plain, "tf32") is plain


def test_tf32_is_off_unless_the_run_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    seen: dict[str, set[bool]] = {}
    forward = resnet.ResNet.forward

    def watched(network, images):
        kind = "training" if network.training else f"scoring {len(images)}"
        seen.setdefault(kind, set()).update(switch.allow_tf32 for switch in switches)
        return forward(network, images)

    monkeypatch.setattr(resnet.ResNet, "forward", watched)
    for precision in ("tf32", "fp32"):
        seen.clear()
        settings = f"schedule.precision={precision}", f"runs_dir={precision}", "method=dr_kd"
        train(config(*settings, "teacher=self", "teacher.self.allow_chance=true"))
        on = precision == "tf32"
        assert seen.pop("training") == {on}
        assert {one for found in seen.values() for one in found} == {False, on}, "the teacher's"
        seen.clear()
        command = config(*settings, "teacher=self")
        time_run(command, make(command.dataset), make(command.runtime))
        assert seen.pop("training") == {on}, "timed as it trains"
        assert seen.pop("scoring 20") == {on}, "the test set"
        assert not any(switch.allow_tf32 for switch in switches)


def test_tf32_ends_with_the_pass_that_asked_for_it():
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    allow_tf32(False)
    with arithmetic("tf32"):
        assert all(switch.allow_tf32 for switch in switches)
        with suppress(ZeroDivisionError), arithmetic("fp32"):
            assert not any(switch.allow_tf32 for switch in switches)
            raise ZeroDivisionError
        assert all(switch.allow_tf32 for switch in switches)
    assert not any(switch.allow_tf32 for switch in switches)


def test_a_passport_says_what_the_weights_score_in_fp32(tmp_path, monkeypatch):
    """As they are measured before they teach; the record says what was trained and scored."""
    monkeypatch.chdir(tmp_path)
    original = Classification.evaluate

    def evaluate_student(task, network, split, precision):
        in_fp32 = precision == "fp32" != task.precision
        return SimpleNamespace(top1=12.5) if in_fp32 else original(task, network, split, precision)

    monkeypatch.setattr(Classification, "evaluate", evaluate_student)
    for precision in ("fp32", "tf32", "bf16"):
        folder = train(config(f"schedule.precision={precision}", f"runs_dir={precision}"))
        stated = read_passport(folder / "student.passport.json").top1
        recorded = record_at(folder / "record.json")["top1_last"]
        assert recorded != 12.5
        assert stated == (recorded if precision == "fp32" else 12.5)


@pytest.mark.parametrize(("setting", "other"), [("precision", "bf16"), ("table_precision", "fp16")])
def test_runs_of_different_precision_do_not_share_a_cohort(setting, other):
    configs = [config(), config(f"schedule.{setting}={other}")]
    with pytest.raises(ConfigError, match=rf"schedule\.{setting} differs \(fp32, {other}\)"):
        train_together(configs)


def test_an_unknown_precision_is_one_line(command):
    line = command("train", "schedule.precision=bfloat16").error_line
    assert "schedule.precision='bfloat16' is not valid" in line
    assert "bf16" in line


def test_learning_rates_on_a_gpu_change_in_place():
    """A recorded step reads the tensor, so that the tensor must stay."""
    optimizer = Optimizer(Schedule(3, 4, 0.5, [1]), torch.nn.Linear(2, 2), CE())
    (group,) = optimizer.inner.param_groups
    group["lr"] = rate = torch.tensor(0.5)
    optimizer.start_epoch(2)
    assert group["lr"] is rate
    assert rate.item() == pytest.approx(0.05)
    assert optimizer.lr == pytest.approx(0.05, rel=1e-12)


def test_gradients_are_given_their_parameters_strides():
    convolution = torch.nn.Conv2d(8, 4, 1).to(memory_format=torch.channels_last)
    sgd = torch.optim.SGD(convolution.parameters(), lr=0.1)
    gradient = torch.randn(4, 8, 1, 1)
    convolution.weight.grad = gradient.clone()
    convolution.weight.data = convolution.weight.data.as_strided((4, 8, 1, 1), (8, 1, 8, 8))
    align_gradients(sgd)
    assert convolution.weight.grad.stride() == convolution.weight.stride()
    assert torch.equal(convolution.weight.grad, gradient)


@pytest.mark.slow
def test_bfloat16_costs_no_accuracy_with_paired_seeds():
    """resnet8 on small digits: equal first weights and batches, and on average a few points apart.

    A minute on a CPU without bfloat16 units, where a step takes eight times as long.
    """
    data, differences = dataset(), []
    for seed in (0, 1):
        scores = {}
        for precision in ("fp32", "bf16"):
            torch.manual_seed(seed)
            network = resnet8(num_classes=10).to(memory_format=torch.channels_last)
            student = at_precision(network, precision)
            optimizer = Optimizer(Schedule(4, 32, 0.05, [2, 3]), student, CE())
            generator = torch.Generator().manual_seed(seed)
            for epoch in range(1, 5):
                optimizer.start_epoch(epoch)
                student.train()
                for rows in torch.randperm(640, generator=generator).split(32):
                    batch = batch_of(rows, float(epoch), CE())
                    images = batch.images.to(memory_format=torch.channels_last)
                    batch = batch._replace(images=images)
                    train_step(student, CE(), (), optimizer, batch, generator, losses_and_sums)
            scores[precision] = evaluate(student, data.test, data, torch.device("cpu")).top1
        assert scores["fp32"] > 80
        differences.append(scores["bf16"] - scores["fp32"])
    assert abs(statistics.mean(differences)) <= 3, differences


def test_bfloat16_trains_resumes_and_is_another_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [
        train(config(f"schedule.precision={p}", f"runs_dir={where}"))
        for where, p in (("a", "bf16"), ("b", "bf16"), ("c", "fp32"))
    ]
    first, again, other = (weights(folder) for folder in folders)
    assert same(first, again)
    assert not same(first, other)
    assert all(value.dtype != torch.bfloat16 for value in first.values())
    assert folders[0].name == folders[1].name != folders[2].name


@pytest.mark.parametrize(
    ("precision", "bf16", "amx", "told"),
    [("bf16", False, False, 1), ("bf16", True, False, 0), ("bf16", False, True, 0),
     ("fp32", False, False, 0)],
)  # fmt: skip
def test_bf16_is_said_to_be_slow_where_the_processor_emulates_it(
    monkeypatch, precision, bf16, amx, told
):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    said = notices(precision, torch.device("cpu"))
    assert len(said) == told
    assert notices(precision, torch.device("cuda")) == []


@pytest.mark.parametrize(
    ("precision", "bf16", "told"), [("fp32", 1, 1), ("fp32", 0, 0), ("bf16", 1, 0)]
)
def test_an_estimate_says_what_bf16_would_save(monkeypatch, precision, bf16, told):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(bf16))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert len(advice(precision, torch.device("cpu"))) == told
    assert advice(precision, torch.device("cuda")) == []
