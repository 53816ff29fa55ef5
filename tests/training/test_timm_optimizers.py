"""Optimizers, groups, decays and clipping against timm's own."""

import copy

import pytest
import timm
import timm.optim
import torch
from timm.scheduler import create_scheduler_v2
from timm.utils import dispatch_clip_grad
from torch import nn

from kdbench.errors import ConfigError
from kdbench.methods.base import Method
from kdbench.training.optimizer import Optimizer
from kdbench.training.schedule import Schedule
from kdbench.types import Losses

STEPS = 3  # of an epoch
NO_DROPS = {"milestones": [], "batch_size": 4, "lr": 0.02}
REFUSED = ("bnb", "fused", "kron", "adahessian")  # the first two: of libraries that are missing


def schedule(**settings) -> Schedule:
    return Schedule(**{"epochs": 6, **NO_DROPS, **settings})


SHAPES = {
    "cosine": ({"decay": "cosine"}, {"sched": "cosine"}),
    "linear": ({"decay": "linear", "min_lr": 0.001}, {"sched": "poly", "decay_rate": 1.0}),
    "steps": ({"decay_epochs": 2.4, "gamma": 0.97}, {"sched": "step", "decay_rate": 0.97}),
}


@pytest.mark.parametrize("by", ["epoch", "step"])
@pytest.mark.parametrize("warm_up", [0, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_rates_are_timm_s_at_every_step(shape, warm_up, by):
    ours, theirs = SHAPES[shape]
    warm = {"warmup_epochs": warm_up, "warmup_lr": 0.004} if warm_up else {}
    optimizer = Optimizer(schedule(decay_by=by, **ours, **warm), nn.Linear(2, 2), Method())
    reference = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.02)
    scheduler, _ = create_scheduler_v2(
        reference,
        **theirs,
        num_epochs=6,
        decay_epochs=2.4,
        min_lr=ours.get("min_lr", 0.0),
        step_on_epochs=by == "epoch",
        updates_per_epoch=STEPS,
        **({"warmup_epochs": warm_up, "warmup_lr": 0.004} if warm_up else {}),
    )
    found = []
    for epoch in range(6):  # as timm's train.py: step_update after a step, step after an epoch
        optimizer.start_epoch(epoch + 1)
        for step in range(epoch * STEPS, (epoch + 1) * STEPS):
            optimizer.start_step(step, STEPS)
            found.append(optimizer.inner.param_groups[0]["lr"])
            expected = reference.param_groups[0]["lr"]
            assert found[-1] == pytest.approx(expected, rel=1e-12, abs=1e-18), (epoch, step)
            assert optimizer.lr == found[-1]
            scheduler.step_update(step + 1)
        scheduler.step(epoch + 1)
    assert len(set(found)) > 2


def test_a_cosine_takes_the_warm_up_of_every_other_schedule():
    optimizer = Optimizer(schedule(decay="cosine", warmup_epochs=1), nn.Linear(2, 2), Method())
    optimizer.start_epoch(1)
    found = []
    for step in range(STEPS):
        optimizer.start_step(step, STEPS)
        found.append(optimizer.lr)
    assert found == pytest.approx([0.02 / 3, 0.04 / 3, 0.02])


def test_ten_steps_are_timm_s_to_rounding():
    """AdamW on a transformer: groups by layer, norms without decay, clipping, a cosine."""
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=5, img_size=32)
    theirs = copy.deepcopy(network)
    recipe = schedule(
        lr=1e-3,
        optimizer="adamw",
        optimizer_settings={"betas": [0.9, 0.95], "eps": 1e-7},
        weight_decay=0.05,
        filter_bias_and_bn=True,
        layer_decay=0.75,
        clip_grad=0.5,
        decay="cosine",
        decay_by="step",
        warmup_epochs=1,
        warmup_lr=1e-5,
    )
    optimizer = Optimizer(recipe, network, Method())
    reference = timm.optim.create_optimizer_v2(
        theirs, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75, betas=(0.9, 0.95), eps=1e-7
    )
    scheduler, _ = create_scheduler_v2(
        reference,
        "cosine",
        num_epochs=6,
        warmup_epochs=1,
        warmup_lr=1e-5,
        step_on_epochs=False,
        updates_per_epoch=STEPS,
    )
    for step in range(10):
        images, labels = torch.randn(4, 3, 32, 32), torch.randint(5, (4,))
        if step % STEPS == 0:
            optimizer.start_epoch(step // STEPS + 1)
        optimizer.start_step(step, STEPS)
        optimizer.update(Losses(nn.functional.cross_entropy(network(images), labels), None))
        nn.functional.cross_entropy(theirs(images), labels).backward()
        dispatch_clip_grad(theirs.parameters(), 0.5)
        reference.step()
        reference.zero_grad()
        scheduler.step_update(step + 1)
    for (name, found), expected in zip(
        network.named_parameters(), theirs.parameters(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=name)
    rates = {group["lr"] for group in optimizer.inner.param_groups}
    assert len(rates) > 5


def test_nesterov_is_pytorch_s():
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    theirs = copy.deepcopy(network)
    optimizer = Optimizer(schedule(nesterov=True), network, Method())
    settings = {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
    reference = torch.optim.SGD(theirs.parameters(), 0.02, **settings)
    for _ in range(3):
        images = torch.randn(4, 3)
        optimizer.update(Losses(network(images).square().mean(), None))
        reference.zero_grad()
        theirs(images).square().mean().backward()
        reference.step()
    assert torch.equal(network.weight, theirs.weight)


NAMES = [name for name in timm.optim.list_optimizers() if not name.startswith(REFUSED)]


@pytest.mark.parametrize("name", NAMES)
def test_the_state_of_any_optimizer_is_taken_up_bit_for_bit(name):
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))

    def run(optimizer: Optimizer, own: nn.Module, steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            images = torch.randn(2, 3, 4, 4, generator=generator)
            optimizer.update(Losses(own(images).square().sum(), None))

    recipe = schedule(optimizer=name, lr=0.01)
    whole, stopped, resumed = network(), network(), network()
    first, second = Optimizer(recipe, whole, Method()), Optimizer(recipe, stopped, Method())
    third = Optimizer(recipe, resumed, Method())
    run(first, whole, range(5))
    run(second, stopped, range(3))
    resumed.load_state_dict(stopped.state_dict())
    tensors, plain = second.state()
    third.restore({key: value.clone() for key, value in tensors.items()}, dict(plain))
    run(third, resumed, range(3, 5))
    assert not torch.equal(whole[0].weight, stopped[0].weight)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"optimizer": "adammw"}, "schedule.optimizer='adammw' is unknown: did you mean 'adamw'?"),
        ({"optimizer": "adahessian"}, "needs second derivatives"),
        ({"optimizer": "kron"}, "draws random numbers of its own"),
        (
            {"optimizer": "adamw", "optimizer_settings": {"beta": [0.9, 0.95]}},
            "adamw has no setting 'beta': did you mean 'betas'?",
        ),
        ({"optimizer_settings": {"eps": 1.0}}, "schedule.optimizer=sgd has no"),
        ({"nesterov": True, "momentum": 0.0}, "schedule.nesterov is of schedule.optimizer=sgd"),
        ({"optimizer": "adamw", "nesterov": True}, "schedule.nesterov is of"),
        ({"layer_decay": 1.5}, "schedule.layer_decay must be above 0 and at most 1, not 1.5"),
        ({"clip_grad": 0.0}, "schedule.clip_grad must be above 0, not 0.0"),
        ({"decay": "cosine", "milestones": [2]}, "schedule.decay=cosine has no drops"),
        ({"decay_epochs": 6.0}, "no drop would come before the end"),
        ({"decay_epochs": 2.0, "milestones": [2]}, "schedule.decay_epochs is of"),
        ({"min_lr": 0.02, "decay": "cosine"}, "schedule.min_lr must be from 0 to below"),
        ({"min_lr": 0.01}, "schedule.min_lr is of schedule.decay=cosine or linear"),
        ({"warmup_lr": 0.01}, "set schedule.warmup_epochs too"),
        ({"warmup_lr": -1.0, "warmup_epochs": 1}, "schedule.warmup_lr must be 0 or more"),
    ],
)
def test_refuses_what_cannot_be_trained(change, line):
    with pytest.raises(ConfigError) as error:
        schedule(**change)
    assert line in str(error.value)


@pytest.mark.parametrize(
    ("change", "method", "line"),
    [
        ({"layer_decay": 0.7}, Method(), "needs a network that says what its layers are"),
        (
            {"optimizer": "adamw", "optimizer_settings": {"eps": -1.0}},
            Method(),
            "schedule.optimizer=adamw cannot be made (Invalid epsilon value: -1.0)",
        ),
    ],
)
def test_refuses_what_does_not_go_together(change, method, line):
    with pytest.raises(ConfigError) as error:
        Optimizer(schedule(**change), nn.Linear(2, 2), method)
    assert line in str(error.value)
