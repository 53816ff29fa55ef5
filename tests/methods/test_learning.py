"""Every method learns on real data: its distillation falls, and its student beats chance.

scikit-learn's digits at 16 x 16; small enough for one thread and a second a method.
"""

import copy
from functools import cache

import pytest
import torch
from torch import nn

from kdbench.assembly.build import build_method, set_up
from kdbench.assembly.evaluation import evaluate
from kdbench.assembly.method_pages import recipes
from kdbench.methods.base import Method
from kdbench.methods.ce import CE
from kdbench.networks.forward import output_of, teacher_outputs
from kdbench.networks.resnet import resnet8, resnet14
from kdbench.schema.check import check_node
from kdbench.training.optimizer import Optimizer
from kdbench.training.schedule import Schedule
from kdbench.training.step import losses_and_sums, train_step
from support.batches import batch_of, dataset
from support.commands import compose_method

BATCH, EPOCHS = 32, 3
# 60 steps are few: weights of 30 and more and a momentum of 0.975 want a smaller learning rate, a
# label weight of 0.05 a larger one, and MLKD on standardised logits MLKD's own weight besides. What
# is slow to start gets more of them, so that no other rounding of a processor decides.
LONGER = dict.fromkeys(("dot", "ea_ls_mlkd", "ls_mlkd", "nkd", "wkd_l"), 8)
LR = 0.02
LRS = {"dot": 0.005, "nkd": 0.005, "ls_mlkd": 0.005, "ea_ls_mlkd": 0.005}
LRS |= {"dr_kd": 0.1, "tfkd_self": 0.1}
SETTINGS = {
    "ls_mlkd": ["method.inner.kd_weight=0.9"],
    "ea_ls_mlkd": ["method.inner.inner.kd_weight=0.9"],
}
BEATS_CHANCE = 30.0  # percent; chance is 10, and its standard deviation on 360 images 1.6
LATE = 1000.0  # an epoch after every warm-up


def train(
    student: nn.Module, method: Method, teachers: list[nn.Module], lr: float, epochs: int = EPOCHS
) -> None:
    optimizer = Optimizer(Schedule(epochs, BATCH, lr, []), student, method)
    generator = torch.Generator().manual_seed(0)
    student.train()
    for epoch in range(1, epochs + 1):
        order = torch.randperm(640, generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(BATCH):
            batch = batch_of(rows, float(epoch), method)
            train_step(
                student, method, teacher_outputs(teachers, batch), optimizer, batch, generator
            )


@cache
def teacher(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = resnet14(num_classes=10)
    train(network, CE(), [], lr=0.05)
    return network.eval().requires_grad_(False)


def distillation(student: nn.Module, method: Method, teachers: list[nn.Module]) -> float:
    """The distillation terms on training images, after all warm-ups, in eval mode."""
    student.eval()
    batch = batch_of(torch.arange(64), LATE, method)
    with torch.no_grad():
        state = copy.deepcopy(method)
        losses, _ = losses_and_sums(student, state, batch, teacher_outputs(teachers, batch))
    return losses.distillation.item()


@pytest.fixture(autouse=True)
def one_thread():
    """The same sums in the same order with any number of cores; a second one gains nothing here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", recipes())
def test_a_student_learns(name):
    method = build_method(
        check_node("method", compose_method(name, *SETTINGS.get(name, []))), seed=0
    )
    count = 2 if method.num_teachers is None else method.num_teachers
    teachers = [teacher(seed) for seed in range(count)]
    torch.manual_seed(100)
    named = {f"teacher{i}": network for i, network in enumerate(teachers)}
    student = set_up(method, resnet8(num_classes=10), named, dataset(), seed=0)
    if count:
        output_of(student.train(), batch_of(torch.arange(64), 1.0, method).images)  # BN statistics
        before = distillation(student, method, teachers)
    train(student, method, teachers, LRS.get(name, LR), LONGER.get(name, EPOCHS))
    if count:
        assert distillation(student, method, teachers) < before
    assert evaluate(student, dataset().test, dataset(), torch.device("cpu")).top1 > BEATS_CHANCE
