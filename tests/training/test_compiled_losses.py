"""Compiled losses: the numbers of the eager ones, or the eager ones, said once."""

import pytest
import torch

from kdbench.assembly.build import build_method, build_network, set_up
from kdbench.assembly.method_pages import recipes
from kdbench.data.memory.synthetic import synthetic
from kdbench.networks.forward import output_of, teacher_outputs
from kdbench.schema.check import check_node
from kdbench.tasks.classification.losses import losses_of_output
from kdbench.training.compiled_losses import CompiledLosses
from kdbench.types import Batch
from support.commands import compose_method

SIZE = 6
RECIPES = recipes()
PLAIN = {"pad": 0, "flip": False, "val_split": 0, "mean": [0.5] * 3, "std": [0.25] * 3}
DATASET = synthetic(num_classes=10, num_train=50, num_test=10, image_size=32, seed=0, **PLAIN)


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network({"_target_": f"kdbench.networks.resnet.{name}"}, DATASET)


def inputs_of(name: str):
    """A method, a batch, the student's output on it, and the teachers'."""
    method = build_method(check_node("method", compose_method(name)), seed=0)
    count = 2 if method.num_teachers is None else method.num_teachers
    teachers = [network("resnet14").eval().requires_grad_(False) for _ in range(count)]
    named = {f"teacher{number}": teacher for number, teacher in enumerate(teachers)}
    student = set_up(method, network("resnet8"), named, DATASET, seed=0)
    images = DATASET.train.images[:SIZE].float() / 128 - 1
    if method.views > 1:
        images = torch.stack([images / (1 + view) for view in range(method.views)])
    batch = Batch(images, DATASET.train.labels[:SIZE], torch.arange(SIZE), torch.tensor(3.0))
    batch = batch._replace(drawn=method.draw(batch, torch.Generator().manual_seed(1)))
    return method, batch, output_of(student, images), teacher_outputs(teachers, batch)


def losses_for(method: str, lines: list[str]) -> CompiledLosses:
    return CompiledLosses(losses_of_output, SIZE, "fp32", lines.append)


@pytest.mark.long
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_compiles_to_its_own_numbers(name):
    torch._dynamo.reset()
    method, *given = inputs_of(name)
    lines: list[str] = []
    losses_for(name, lines)(method, *given)
    assert lines == []
