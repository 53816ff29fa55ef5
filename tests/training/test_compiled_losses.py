"""Compiled losses: the numbers of the eager ones, or the eager ones, said once."""

import pytest
import torch

import kdbench.training.compiled_losses
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
STAY_EAGER = ("gkl",)  # its compiled gradient differs by more than is allowed (torch 2.15, CPU)
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
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PyTorch's compiler about itself
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in STAY_EAGER])
def test_every_recipe_compiles_to_its_own_numbers(name):
    torch._dynamo.reset()
    method, *given = inputs_of(name)
    lines: list[str] = []
    losses_for(name, lines)(method, *given)
    assert lines == []


@pytest.fixture
def traced(monkeypatch) -> None:
    """Trace and differentiate whole, without the compiler behind, which takes ten seconds."""
    step = torch.compile(losses_of_output, dynamic=False, fullgraph=True, backend="aot_eager")
    compiler = kdbench.training.compiled_losses
    monkeypatch.setattr(compiler, "compile_losses", lambda eager: step)


@pytest.mark.parametrize("name", ["kd", "crd", "fitnet"])
def test_compiled_losses_are_the_eager_ones_and_change_what_they_change(name, traced):
    """Losses, sums, gradients of student and method, and banks."""
    found = []
    for compiles in (True, False):
        method, batch, student, teachers = inputs_of(name)
        lines: list[str] = []
        losses_of = losses_for(name, lines) if compiles else losses_of_output
        losses, sums = losses_of(method, batch, student, teachers)
        own = [*method.parameters()]
        grads = torch.autograd.grad(losses.total(), [student.logits, *own], allow_unused=True)
        kept = [grad for grad in grads if grad is not None]
        found.append([losses.total(), *sums.values(), *kept, *method.buffers()])
        assert lines == []
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_short_batch_is_not_compiled(monkeypatch):
    monkeypatch.setattr(kdbench.training.compiled_losses, "compile_losses", None)
    method, batch, student, teachers = inputs_of("kd")
    losses_of = CompiledLosses(losses_of_output, SIZE + 1, "fp32", pytest.fail)
    losses_of(method, batch, student, teachers)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda *given: 1 / 0, "division by zero"),
        (lambda *given: halved(*losses_of_output(*given)), "loss off by "),
    ],
)
def test_what_does_not_compile_or_differs_stays_eager_and_says_so_once(monkeypatch, wrong, reason):
    monkeypatch.setattr(kdbench.training.compiled_losses, "compile_losses", lambda eager: wrong)
    method, *given = inputs_of("kd")
    lines: list[str] = []
    losses_of = losses_for("kd", lines)
    expected, _ = losses_of_output(method, *given)
    for _ in range(2):
        losses, _ = losses_of(method, *given)
        assert torch.equal(losses.total(), expected.total())
    (line,) = lines
    assert line.startswith(f"the losses of KD are not compiled ({reason}")


def halved(losses, sums):
    return losses.times(0.5), sums
