import subprocess
import sys

import pytest
import torch
from torch import nn

from kdbench.errors import ConfigError
from kdbench.methods.base import Method
from kdbench.training.optimizer import Optimizer
from kdbench.training.schedule import Schedule
from kdbench.types import Losses

RECIPE = {"epochs": 240, "batch_size": 64, "lr": 0.05, "milestones": [150, 180, 210]}


class WithController(Method):
    """Has a parameter with its own learning rate."""

    def __init__(self):
        super().__init__()
        self.controller = nn.Parameter(torch.ones(()))

    def param_groups(self):
        return [{"params": [self.controller], "lr": 2.0, "weight_decay": 0.0}]


def test_drops_take_effect_after_the_milestone_as_multisteplr():
    student = nn.Linear(2, 2)
    optimizer = Optimizer(Schedule(**RECIPE), student, Method())
    reference = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.05)
    steps = torch.optim.lr_scheduler.MultiStepLR(reference, [150, 180, 210])
    for epoch in range(1, 241):
        optimizer.start_epoch(epoch)
        ours = optimizer.inner.param_groups[0]["lr"]
        assert ours == pytest.approx(reference.param_groups[0]["lr"], rel=1e-12), epoch
        reference.step()
        steps.step()


def test_a_process_that_trains_imports_no_compiler():
    """PyTorch's own SGD imports torch._dynamo, which takes longer than a short run."""
    code = (
        "import sys, torch\n"
        "from kdbench.methods.base import Method\n"
        "from kdbench.training.optimizer import Optimizer\n"
        "from kdbench.training.schedule import Schedule\n"
        "from kdbench.types import Losses\n"
        "layer = torch.nn.Linear(2, 2)\n"
        "optimizer = Optimizer(Schedule(2, 1, 0.1, [1]), layer, Method())\n"
        "optimizer.update(Losses(layer(torch.ones(1, 2)).sum(), None))\n"
        "optimizer.restore(*optimizer.state())\n"
        "print('torch._dynamo' in sys.modules, float(layer.weight.grad.sum()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False 4.0\n", done.stderr


def test_steps_are_those_of_pytorch_s_sgd():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    recipe = {"epochs": 2, "batch_size": 1, "lr": 0.1, "milestones": []}
    optimizer = Optimizer(Schedule(**recipe, nesterov=True), ours, Method())
    reference = torch.optim.SGD(
        theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    for step in range(3):
        images = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        optimizer.update(Losses(ours(images).square().sum(), None))
        reference.zero_grad()
        theirs(images).square().sum().backward()
        reference.step()
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.bias, theirs.bias)


def test_plain_sgd_on_every_parameter():
    group = Optimizer(Schedule(**RECIPE), nn.BatchNorm2d(3), Method()).inner.param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["dampening"]) == (0.9, 5e-4, 0)
    assert not group["nesterov"]
    assert len(group["params"]) == 2


def test_a_method_s_own_rate_follows_the_schedule():
    optimizer = Optimizer(Schedule(**RECIPE), nn.Linear(2, 2), WithController())
    optimizer.start_epoch(151)
    rates = [group["lr"] for group in optimizer.inner.param_groups]
    assert rates == pytest.approx([0.005, 0.2])
    assert optimizer.inner.param_groups[1]["weight_decay"] == 0.0


def test_a_warm_up_rises_by_the_step_as_in_dr_kd():
    schedule = Schedule(200, 128, 0.1, [60, 120, 160], gamma=0.2, warmup_epochs=1)
    optimizer = Optimizer(schedule, nn.Linear(2, 2), WithController())

    def rates(epoch: int, step: int) -> list[float]:
        optimizer.start_epoch(epoch)
        optimizer.start_step(step, 391)
        return [group["lr"] for group in optimizer.inner.param_groups]

    assert rates(1, 0) == pytest.approx([0.1 / 391, 2.0 / 391])
    assert rates(1, 195) == pytest.approx([0.1 * 196 / 391, 2.0 * 196 / 391])
    assert rates(1, 390) == rates(2, 391) == [0.1, 2.0]
    expected = {60: 0.1, 61: 0.02, 121: 0.004, 161: 0.0008}
    for epoch, rate in expected.items():
        assert rates(epoch, 391 * (epoch - 1))[0] == pytest.approx(rate)
    assert optimizer.lr == pytest.approx(0.0008)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"batch_size": 0}, "schedule.batch_size must be 1 or more, not 0"),
        ({"epochs": -3}, "schedule.epochs must be 1 or more, not -3"),
        ({"lr": 0.0}, "schedule.lr must be above 0"),
        ({"momentum": -0.1}, "schedule.momentum must be 0 or more"),
        ({"milestones": [150, 240]}, "each must be below 240"),
        ({"milestones": [180, 150]}, "schedule.milestones must rise"),
        ({"milestones": [0, 150]}, "schedule.milestones must rise"),
        ({"warmup_epochs": -1}, "schedule.warmup_epochs must be from 0 to schedule.epochs=240"),
        ({"warmup_epochs": 241}, "schedule.warmup_epochs must be from 0 to schedule.epochs=240"),
    ],
)
def test_refuses_what_cannot_be_trained(change, line):
    with pytest.raises(ConfigError, match=line):
        Schedule(**{**RECIPE, **change})
