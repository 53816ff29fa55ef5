"""The contract of every method file in conf/method."""

import ast
import copy
from functools import cache, cached_property
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from kdbench.assembly.build import build_method, build_network, set_up
from kdbench.assembly.method_pages import recipes
from kdbench.data.memory.synthetic import synthetic
from kdbench.methods.base import Method
from kdbench.networks.forward import output_of, teacher_outputs
from kdbench.schema.check import check_node
from kdbench.tasks.classification.losses import losses_and_sums
from kdbench.training.optimizer import Optimizer
from kdbench.training.schedule import Schedule
from kdbench.training.snapshot import TrainState, restore, start_randomness, take
from kdbench.training.step import train_step
from kdbench.types import Batch, Output
from support.commands import ROOT, compose_method

FILES = {path.stem: path for path in sorted((ROOT / "conf" / "method").glob("*.yaml"))}
RECIPES = recipes()
PAIRS = {"same family": ("resnet14", "resnet8"), "across": ("wrn_16_2", "ShuffleV2")}
SIZE = 6
SURE = {"crld": ["method.weak_threshold=0.0", "method.strong_threshold=0.0"]}  # no teacher here is
# A bank, a solver, a schedule, two views, a network of the method's own, relations, a wrapper.
TRACED = ("kd", "crd", "dynamickd", "wkd_l", "mlkd", "reviewkd", "rkd", "ls_kd", "er_kd", "dr_kd")
FORBIDDEN = {"item", "cpu", "tolist", "numpy", "nonzero", "print", "masked_select"}
RANDOM = {"rand", "randn", "randint", "randperm", "multinomial", "dropout", "bernoulli"}


@cache
def untrained(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_network({"_target_": target_of("student", name)}, DATASET)


def target_of(group: str, name: str) -> str:
    return yaml.safe_load((ROOT / "conf" / group / f"{name}.yaml").read_text())["_target_"]


DATASET = synthetic(
    num_classes=10,
    num_train=50,
    num_test=10,
    image_size=32,
    seed=0,
    mean=[0.5, 0.5, 0.5],
    std=[0.25, 0.25, 0.25],
    pad=0,
    flip=False,
    val_split=0,
)


@cache
def frozen(name: str) -> nn.Module:
    return copy.deepcopy(untrained(name)).eval().requires_grad_(False)


class Case:
    """A method set up between two networks, and a batch."""

    def __init__(self, method: str, pair: str) -> None:
        teacher, student = PAIRS[pair]
        self.node = check_node("method", compose_method(method, *SURE.get(method, [])))
        self.method: Method = build_method(self.node, seed=0)
        count = 2 if self.method.num_teachers is None else self.method.num_teachers
        self.teachers = [copy.deepcopy(frozen(teacher)) for _ in range(count)]
        named = {f"teacher{i}": module for i, module in enumerate(self.teachers)}
        fresh = copy.deepcopy(untrained(student))
        self.student = set_up(self.method, fresh, named, DATASET, seed=0)
        self.student.eval()  # batch norm would couple the samples
        self.method.eval()

    def batch(self, rows: slice = slice(0, SIZE), epoch: float = 3.0) -> Batch:
        images = DATASET.train.images[rows].float() / 128 - 1
        if self.method.views > 1:
            images = torch.stack([images / (1 + view) for view in range(self.method.views)])
        index = torch.arange(50)[rows]
        batch = Batch(images, DATASET.train.labels[rows], index, torch.tensor(epoch))
        return batch._replace(drawn=self.method.draw(batch, torch.Generator().manual_seed(1)))

    @cached_property
    def taught(self) -> tuple[Output, ...]:
        """The teachers' outputs on the whole batch."""
        return teacher_outputs(self.teachers, self.batch())

    @cached_property
    def own(self) -> Output:
        """The student's output on the whole batch, with its graph."""
        return output_of(self.student, self.batch().images)

    def terms(self, batch: Batch, own: Output, taught: tuple[Output, ...]) -> dict[str, Tensor]:
        return self.fresh()(batch, own, taught)

    def fresh(self) -> Method:
        """The method as it is before any step: some remember what they have seen."""
        return copy.deepcopy(self.method)


@pytest.fixture(
    params=[(m, p) for m in RECIPES for p in PAIRS], ids=lambda x: "-".join(x), scope="module"
)
def case(request) -> Case:
    """One of a recipe and a pair for all tests that ask for it: none may change it."""
    return Case(*request.param)


def check_terms(case: Case) -> None:
    terms = case.terms(case.batch(), case.own, case.taught)
    assert "ce" in terms, "the label term is called ce"
    for name, term in terms.items():
        shapes = ((SIZE,), (case.method.views, SIZE), ())
        assert term.shape in shapes, f"{name} is {list(term.shape)}"
        assert term.isfinite().all(), name


def test_terms_are_per_sample_or_couple_the_batch(case):
    check_terms(case)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("method", [name for name in FILES if name not in RECIPES])
def test_so_are_those_of_a_recipes_variants(method, pair):
    check_terms(Case(method, pair))


def test_a_method_says_whether_it_reads_the_epoch(case):
    """A loop of somebody's own is asked for the epoch where it matters, and there alone."""
    read = []

    class Watched(Batch):
        @property
        def epoch(self):
            read.append(True)
            return self[3]

    case.terms(Watched(*case.batch()), case.own, case.taught)
    parts = [part for part in case.method.modules() if isinstance(part, Method)]
    assert bool(read) == any(part.reads_epoch for part in parts)


def test_a_per_sample_term_reads_its_own_sample_only(case):
    batch = case.batch(slice(0, 4))
    whole = case.terms(case.batch(), case.own, case.taught)
    outputs = output_of(case.student, batch.images), teacher_outputs(case.teachers, batch)
    part = case.terms(batch, *outputs)
    for name, term in whole.items():
        if term.ndim:
            torch.testing.assert_close(term[..., :4], part[name], rtol=1e-4, atol=1e-5)


def test_gradients_reach_student_and_method_but_no_teacher(case):
    batch, (student, method) = case.batch(), copy.deepcopy((case.student, case.method))
    outputs = teacher_outputs(case.teachers, batch)
    losses, sums = losses_and_sums(student, method, batch, outputs)
    loss = losses.total()
    loss.backward()
    for owner in (student, method):
        for name, parameter in owner.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    assert all(p.grad is None for teacher in case.teachers for p in teacher.parameters())
    torch.testing.assert_close(sums["loss"], loss.detach().double() * SIZE, rtol=1e-6, atol=1e-6)


def test_every_parameter_is_in_one_group_of_the_optimizer(case):
    """A parameter in none is never trained, and one in two is trained twice."""
    grouped = [id(p) for group in case.method.param_groups() for p in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in case.method.parameters())


def test_distillation_alone_moves_the_student(case):
    """A method whose own gradient is silently zero would pass for a slow cross-entropy."""
    batch = case.batch(epoch=100.0)  # after every warm-up
    student, method = copy.deepcopy((case.student, case.method))
    losses, _ = losses_and_sums(student, method, batch, case.taught)
    if losses.distillation is None:
        assert case.method.num_teachers == 0
        return
    (gradient,) = torch.autograd.grad(losses.distillation, next(student.parameters()))
    assert gradient.abs().max() > 0


def test_reads_of_the_networks_only_what_it_declares(case):
    """A table of logits is enough for a method that declares no tap, and so is a stack's output."""
    taps, own_taps = case.method.taps, case.method.own_taps
    seen = [
        Output(output.logits, {name: output.taps[name] for name in taps}) for output in case.taught
    ]
    own = Output(case.own.logits, {name: case.own.taps[name] for name in (*taps, *own_taps)})
    case.terms(case.batch(), own, tuple(seen))


def test_same_input_same_terms(case):
    given = case.batch(), case.own, case.taught
    first, second = case.terms(*given), case.terms(*given)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", RECIPES)
def test_large_logits_have_a_finite_loss_and_gradient(method):
    """In float32, where probabilities underflow: several released codes overflow there."""
    case = Case(method, "same family")
    batch = case.batch(epoch=200.0)  # after every warm-up, before the end of any decay
    own = output_of(case.student, batch.images)
    theirs = teacher_outputs(case.teachers, batch)
    for scale in (30.0, 300.0):
        generator = torch.Generator().manual_seed(2)
        student, *teachers = (
            output._replace(logits=scale * torch.randn(output.logits.shape, generator=generator))
            for output in (own, *theirs)
        )
        student.logits.requires_grad_()
        terms = copy.deepcopy(case.method)(batch, student, tuple(teachers))
        for name, term in terms.items():
            assert term.isfinite().all(), name
        sum(term.mean() for term in terms.values()).backward(retain_graph=True)
        assert student.logits.grad.isfinite().all()


class Answers(nn.Module):
    """A student whose output on every view is its parameters: its graph is that of the loss."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        images = case.batch().images
        output = case.student(images if case.method.views == 1 else images[0])
        self.logits = nn.Parameter(output.logits.detach().clone())
        named = {name: nn.Parameter(tap.detach().clone()) for name, tap in output.taps.items()}
        self.taps = nn.ParameterDict(named)

    def forward(self, images: Tensor) -> Output:
        return Output(self.logits, dict(self.taps.items()))


def check_graph(case: Case, student: nn.Module) -> None:
    """Compile the losses of a step with a student, and compare them in three epochs."""
    torch._dynamo.reset()  # the limit on recompilations counts over the whole process
    eager_student, eager = copy.deepcopy((student, case.method))
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    step = torch.compile(losses_and_sums, fullgraph=True, backend=count)
    for epoch in (1.0, 2.0, 30.0):
        batch = case.batch(epoch=epoch)
        losses, _ = step(student, case.method, batch, case.taught)
        expected, _ = losses_and_sums(eager_student, eager, batch, case.taught)
        torch.testing.assert_close(losses.total(), expected.total(), rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore:Guards may run slower")  # PyTorch on Python 3.13.0
@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.long] * (m not in TRACED)) for m in RECIPES]
)
def test_one_full_graph_for_all_epochs_with_the_eager_numbers(method):
    """The loss is traced whole, and an epoch is a tensor: a new one is no new graph.

    tests/training/test_compiled_losses.py differentiates and compiles it. Where a method cannot be
    traced, a run says so and goes on without.
    """
    case = Case(method, "same family")
    check_graph(case, Answers(case))


@pytest.mark.filterwarnings("ignore:Guards may run slower")
@pytest.mark.parametrize("method", ["kd", "crld"])
def test_the_graph_of_a_step_holds_the_student_too(method):
    """With one view and with two."""
    case = Case(method, "same family")
    check_graph(case, case.student)


@pytest.mark.parametrize("method", RECIPES)
def test_saved_and_restored_it_goes_on_as_if_nothing_had_happened(method):
    """Banks, controllers, adapters, momenta and draws are all in the checkpoint."""

    def ready() -> tuple[Case, TrainState]:
        case = Case(method, "same family")
        optimizer = Optimizer(Schedule(3, SIZE, 0.01, []), case.student, case.method)
        generator = torch.Generator().manual_seed(5)
        random = start_randomness(6, torch.device("cpu"))
        return case, TrainState(case.student.train(), case.method, optimizer, generator, random)

    def step(case: Case, state: TrainState, epoch: float) -> None:
        batch = case.batch(slice(int(epoch), int(epoch) + SIZE), epoch)
        outputs = teacher_outputs(case.teachers, batch)
        parts = state.student, state.method, outputs, state.optimizer, batch, state.generator
        train_step(*parts, losses_and_sums)

    case, state = ready()
    step(case, state, 1.0)
    kept = copy.deepcopy(take(state))
    step(case, state, 2.0)
    fresh, resumed = ready()
    restore(resumed, kept, Path())
    step(fresh, resumed, 2.0)
    ended, again = take(state), take(resumed)
    assert ended.tensors.keys() == again.tensors.keys()
    for name, tensor in ended.tensors.items():
        assert torch.equal(tensor, again.tensors[name]), name


@pytest.mark.parametrize("method", FILES)
def test_file_names_itself_and_its_sources(method):
    text = FILES[method].read_text()
    assert compose_method(method)["name"] == method
    assert text.startswith("# "), "the head comment says paper and expected score"
    keys = [line for line in text.splitlines() if line[:1].isalpha()]
    for line in keys:
        if line.split(":")[0] not in ("name", "_target_", "inferred", "defaults"):
            above = text.splitlines()[text.splitlines().index(line) - 1]
            assert "#" in line or above.startswith("#"), f"{line} has no source"


def calls(path: Path) -> list[tuple[str, str]]:
    """(function, called name) of every call in a source file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Call):
                    name = getattr(inner.func, "attr", getattr(inner.func, "id", ""))
                    found.append((node.name, name))
    return found


@pytest.mark.parametrize(
    "path",
    [*(ROOT / "src/kdbench/methods").glob("*.py"), ROOT / "src/kdbench/training/step.py"],
    ids=lambda path: path.name,
)
def test_the_step_waits_for_no_device_and_draws_nothing(path):
    for function, name in calls(path):
        assert name not in FORBIDDEN, f"{function} calls {name}: it waits for the device"
        if function == "forward":
            assert name not in RANDOM, f"forward calls {name}: draw it in draw()"
