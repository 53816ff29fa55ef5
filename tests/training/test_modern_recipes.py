"""Runs with everything that a recipe of after 2021 has."""

import ast
import copy
import inspect
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import nn
from torch.amp import GradScaler

from kdbench.assembly.build import build_method
from kdbench.assembly.evaluation import evaluate
from kdbench.data.augmentation.batches import ChangedBatches
from kdbench.errors import ConfigError, Interrupted
from kdbench.methods.base import Method, Wrapper
from kdbench.methods.ce import CE
from kdbench.methods.crd import CRD
from kdbench.methods.dot import DOT
from kdbench.methods.kd import KD
from kdbench.methods.label_smoothing import LabelSmoothing
from kdbench.methods.mlkd import MLKD
from kdbench.networks.tapped import timm_model
from kdbench.records.passport import read_passport, sha256_of
from kdbench.system.runtime import Runtime
from kdbench.tasks.classification.losses import losses_and_sums
from kdbench.training.fitting import check_device, check_fit
from kdbench.training.optimizer import Optimizer
from kdbench.training.schedule import Schedule
from kdbench.training.step import update
from kdbench.training.together import train, train_together
from kdbench.types import Batch, Losses, Output
from support.batches import batch_of, dataset
from support.commands import ROOT, compose_method
from support.records import record_at
from support.runs import assert_same_runs, config, interrupt_at, runs, same, taught

CPU = torch.device("cpu")
MODERN = [
    "schedule.milestones=[]",
    "schedule.optimizer=lamb",
    "schedule.lr=0.01",
    "schedule.weight_decay=0.02",
    "schedule.filter_bias_and_bn=true",
    "schedule.decay=cosine",
    "schedule.decay_by=step",
    "schedule.warmup_epochs=1",
    "schedule.warmup_lr=1e-6",
    "schedule.clip_grad=1.0",
    "schedule.ema_decay=0.8",
    "schedule.label_smoothing=0.1",
    "schedule.mixup=0.8",
    "schedule.cutmix=1.0",
    "schedule.mixup_mode=elem",
    "schedule.random_erasing=0.5",
    "schedule.rand_augment=rand-m9-mstd0.5-inc1",
    "schedule.repeats=3",
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def teachers(here) -> list[str]:
    return [str(train(config("student=resnet14", "schedule.epochs=1", "runs_dir=teachers")))]


def test_it_goes_on_in_the_middle_of_an_epoch_to_the_same_bits(teachers, monkeypatch):
    whole = taught("kd", teachers, *MODERN, "runs_dir=whole")
    stopped = taught("kd", teachers, *MODERN, "runs_dir=stopped")
    train(whole)
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)  # the second step of the second epoch
        with pytest.raises(Interrupted):
            train(stopped)
    train(stopped)
    assert_same_runs("whole", "stopped")
    (first,), (second,) = runs("whole").values(), runs("stopped").values()
    averages = [load_file(folder / "student_ema.safetensors") for folder in (first, second)]
    assert same(*averages)
    assert not same(averages[0], load_file(first / "student.safetensors"))
    record = record_at(first / "record.json")
    assert record["ema_sha256"] == sha256_of(first / "student_ema.safetensors")
    rows = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert record["top1_ema_last"] == rows[-1]["test_ema/top1"]
    assert read_passport(first / "student_ema.passport.json").top1 == record["top1_ema_last"]


def test_the_average_is_modelemav3_s():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    network(torch.randn(2, 3, 4, 4))
    theirs = copy.deepcopy(network)
    optimizer = Optimizer(schedule(ema_decay=0.7), network, Method())
    average = ModelEmaV3(theirs, decay=0.7)
    settings = {"momentum": 0.9, "weight_decay": 5e-4}
    reference = torch.optim.SGD(theirs.parameters(), 0.1, **settings)
    for step in range(4):  # as timm's train.py
        images = torch.randn(4, 3, 4, 4)
        optimizer.start_step(step, 4)
        optimizer.update(Losses(network(images).square().mean(), None))
        reference.zero_grad()
        theirs(images).square().mean().backward()
        reference.step()
        average.update(theirs, step=step + 1)
    assert same(optimizer.ema.module.state_dict(), average.module.state_dict())
    assert not same(optimizer.ema.module.state_dict(), network.state_dict())


def test_together_equals_alone(teachers):
    two = [
        ("ce", [*MODERN, "schedule.optimizer=sgd", "schedule.nesterov=true"]),
        ("kd", [*MODERN, "schedule.layer_decay=null"]),
    ]
    for method, overrides in two:
        train(taught(method, teachers, *overrides, "runs_dir=alone"))
    outcomes = train_together([taught(m, teachers, *o, "runs_dir=side") for m, o in two])
    assert all(isinstance(outcome, Path) for outcome in outcomes), outcomes
    assert_same_runs("alone", "side")


def test_runs_with_other_images_cannot_share_a_stream(teachers):
    mixed = [taught("ce", teachers, *MODERN), taught("ce", teachers, *MODERN, "schedule.mixup=0.2")]
    with pytest.raises(ConfigError, match=r"side by side: schedule\.mixup differs"):
        train_together(mixed)


def test_a_cache_cannot_hold_mixed_images(teachers):
    with pytest.raises(ConfigError, match="the method reads mixed or erased images, which no"):
        train(taught("kd", teachers, *MODERN, "runtime.teacher=table"))


def test_what_cannot_be_trained_leaves_no_folder(here):
    with pytest.raises(ConfigError, match="method label_smoothing has a label loss of its own"):
        train(config("method=label_smoothing", "teacher=none", "schedule.label_smoothing=0.1"))
    assert not list(Path("runs").glob("*"))


def schedule(**settings) -> Schedule:
    return Schedule(**{"epochs": 2, "batch_size": 32, "lr": 0.1, "milestones": [], **settings})


@pytest.mark.parametrize(
    ("settings", "method", "line"),
    [
        ({"mixup": 0.2}, CRD(), "keeps a row for each image, and schedule.mixup"),
        ({"cutmix": 1.0}, MLKD(), "schedule.mixup and schedule.cutmix mix two images"),
        ({"random_erasing": 0.5}, MLKD(), "compares 2 views of each image"),
        ({"repeats": 3}, MLKD(), "compares 2 views of each image"),
        ({"repeats": 3}, CRD(), "schedule.repeats=3 brings an image several times"),
        ({"rand_augment": "rand-x9"}, KD(), "rand_augment='rand-x9' is not of timm's form"),
        ({"rand_augment": "augmix-m3"}, KD(), "write rand-m9-mstd0.5-inc1 or the like"),
        ({"optimizer": "adamw"}, DOT(KD()), "schedule.optimizer=adamw does not go with method it"),
        ({"clip_grad": 1.0}, DOT(KD()), "set schedule.clip_grad=null"),
        ({"precision": "fp16"}, DOT(KD()), "which fp16's loss scaling does not know"),
        ({"label_smoothing": 0.1}, LabelSmoothing(), "has a label loss of its own"),
        ({"cutmix": 1.0, "batch_size": 1}, KD(), "and there is one: set them to 0"),
        ({"mixup": 1.0, "batch_size": 4, "micro_batches": 4}, KD(), "and there is one"),
    ],
)
def test_refuses_what_does_not_go_together(settings, method, line):
    with pytest.raises(ConfigError) as error:
        check_fit(schedule(**settings), "it", method, dataset())
    assert line in str(error.value)


def test_cutmix_on_one_image_is_refused():
    one = dataset()
    alone = type(one.train)(one.train.images[:1], one.train.labels[:1])
    with pytest.raises(ConfigError, match="mix the images of a batch with each other"):
        check_fit(schedule(cutmix=1.0), "kd", KD(), replace(one, train=alone))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"mixup": -0.1}, "schedule.mixup must be 0 or more"),
        ({"cutmix": float("inf")}, "schedule.cutmix must be 0 or more"),
        ({"mixup_prob": 1.5}, "schedule.mixup_prob must be from 0 to 1"),
        ({"random_erasing": -1.0}, "schedule.random_erasing must be from 0 to 1"),
        ({"ema_decay": 1.0}, "schedule.ema_decay must be 0 or more and below 1"),
        ({"label_smoothing": 1.0}, "schedule.label_smoothing must be 0 or more and below 1"),
    ],
)
def test_refuses_numbers_out_of_range(change, line):
    with pytest.raises(ConfigError, match=line):
        schedule(**change)


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(
        ConfigError, match=r"precision=fp16 is of a GPU: set schedule\.precision=bf16"
    ):
        check_device(schedule(precision="fp16"), Runtime(device="cpu"))


def test_fp16_scales_losses_and_leaves_overflowing_steps_out():
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    theirs = copy.deepcopy(network)
    optimizer = Optimizer(schedule(precision="fp16"), network, Method())
    settings = {"momentum": 0.9, "weight_decay": 5e-4}
    reference, scaler = torch.optim.SGD(theirs.parameters(), 0.1, **settings), GradScaler("cpu")
    for step in range(4):
        images = torch.randn(4, 3) * (1e38 if step == 1 else 1)
        if step == 2:  # a resume
            tensors, plain = optimizer.state()
            optimizer = Optimizer(schedule(precision="fp16"), network, Method())
            optimizer.restore(tensors, plain)
        optimizer.update(Losses(network(images).mean(), None))
        reference.zero_grad()
        scaler.scale(theirs(images).mean()).backward()
        scaler.step(reference)
        scaler.update()
    assert optimizer.scaler.get_scale() == scaler.get_scale() < 2**16
    assert same(network.state_dict(), theirs.state_dict())
    assert optimizer.guard.read() is None


def test_the_label_term_is_the_cross_entropy_of_soft_labels():
    logits, targets = torch.randn(4, 5), torch.rand(4, 5).softmax(1)
    batch = Batch(*[torch.zeros(4, dtype=torch.long)] * 3, torch.tensor(1.0), targets=targets)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    found = Method().label_term(batch, Output(logits, {}))
    torch.testing.assert_close(found, expected)


def reads_labels(method: Method) -> bool:
    """Whether a method's own code reads labels or rows, but for how many there are."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(type(method))))
    counted = {
        id(call.args[0])
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "len" and call.args
    }
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in ("labels", "index")
        and getattr(node.value, "id", "") == "batch"
        and id(node) not in counted
        for node in ast.walk(tree)
    )


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "conf/method").glob("*.yaml")))
def test_a_method_for_soft_labels_reads_no_others(name):
    method = build_method(compose_method(name), 0)
    while isinstance(method, Wrapper):
        if method.soft_labels:
            assert not reads_labels(method)
        method = method.inner
    own = type(method).label_term is not Method.label_term
    reads = reads_labels(method) or own or bool(method.banks)
    documented = name in ("ofa", "bce")  # their docstrings say what they do with mixed images
    assert method.soft_labels == (not reads or documented) or method.views > 1


def test_a_vit_of_timm_learns_digits():
    """AdamW, a cosine, mixup and CutMix, the average of the weights: 12 epochs on 640 digits."""
    torch.manual_seed(0)
    small = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 2, "num_heads": 3}
    network = timm_model("vit_tiny_patch16_224", num_classes=10, settings=small)
    recipe = schedule(
        epochs=12, lr=3e-3, optimizer="adamw", weight_decay=0.05, decay="cosine", ema_decay=0.9,
        filter_bias_and_bn=True, warmup_epochs=1, mixup=0.2, cutmix=0.2, mixup_prob=0.5,
        label_smoothing=0.1,
    )  # fmt: skip
    optimizer, data, method = Optimizer(recipe, network, CE()), dataset(), CE()
    for epoch in range(1, 13):
        optimizer.start_epoch(epoch)
        change = ChangedBatches(recipe.batch_changes, 640, (8, 8), 10, 0, epoch, CPU)
        order = torch.randperm(640, generator=torch.Generator().manual_seed(epoch))
        for number, rows in enumerate(order.split(32)):
            optimizer.start_step((epoch - 1) * 20 + number, 20)
            batch = batch_of(rows, float(epoch), method)
            images, labels, targets = change(batch.images, batch.labels, 32 * number)
            batch = batch._replace(images=images, labels=labels, targets=targets)
            update(network.train(), method, optimizer, batch, (), losses_and_sums)
    for one in (network, optimizer.ema.module):
        assert evaluate(one, data.test, data, CPU).top1 > 30  # chance is 10
