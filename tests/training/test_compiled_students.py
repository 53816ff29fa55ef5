"""A compiled student: the numbers of the network; what cannot be compiled runs as it is."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.backends.registry import lookup_backend

import kdbench.system.compiling
import kdbench.training.compiled_losses
import kdbench.training.compiled_students
import kdbench.training.recorded_step
from kdbench.system.precision import at_precision
from kdbench.system.runtime import Runtime
from kdbench.tasks.classification.losses import losses_of_output
from kdbench.training.compiled_students import (
    WORTH_COMPILING,
    CompiledStudent,
    compiled_forward,
    for_training,
    forward,
    try_out,
)
from kdbench.training.together import train
from support.runs import config, same, weights
from support.zoo import constructor

SIZE = torch.Size((8, 3, 32, 32))
ON_A_GPU = SimpleNamespace(device=torch.device("cuda"), compile="auto", overlaps=False)


def student(name: str = "resnet14") -> torch.nn.Module:
    torch.manual_seed(0)
    return constructor(name)(num_classes=10).train()


@pytest.mark.parametrize(("precision", "close"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_it_trains_as_the_network_does(precision, close, monkeypatch):
    """Logits, the tap that is read, gradients and running statistics.

    Traced forward and backward, without the compiler behind, which takes half a minute.
    """
    traced = torch.compile(forward, dynamic=False, backend="aot_eager")
    monkeypatch.setattr(kdbench.training.compiled_students, "compiled_forward", lambda _: traced)
    eager = at_precision(student(), precision)
    compiled = copy.deepcopy(eager)
    images = torch.randn(SIZE)
    called = CompiledStudent(compiled, ("stage3",), len(images))
    assert called(images).taps.keys() == {"stage3"}
    assert called(images[:3]).taps.keys() > {"stage3"}, "a short batch is not compiled"
    eager(images)
    eager(images[:3])
    numbers = [numbers_of_a_step(*pair, images) for pair in ((eager, eager), (called, compiled))]
    assert (numbers[0] - numbers[1]).norm() <= close * numbers[0].norm()


def test_in_pieces_it_has_a_backward_pass_of_each(monkeypatch):
    """So the gradients of the last layers come before the first layers' are computed."""

    def short(backend):
        return lookup_backend("aot_eager" if backend == "inductor" else backend)

    monkeypatch.setattr("torch._dynamo.backends.registry.lookup_backend", short)
    monkeypatch.setattr(kdbench.system.compiling, "SIZES", (1 << 17, 1 << 18))
    torch._dynamo.reset()
    compiled_forward.cache_clear()
    eager = student()
    compiled, images = copy.deepcopy(eager), torch.randn(SIZE)
    called = CompiledStudent(compiled, ("stage3",), len(images), in_pieces=True)
    assert len(compiled_nodes(called(images).logits)) == 3
    eager(images)
    numbers = [numbers_of_a_step(*pair, images) for pair in ((eager, eager), (called, compiled))]
    assert (numbers[0] - numbers[1]).norm() <= 1e-5 * numbers[0].norm()
    compiled_forward.cache_clear()


def compiled_nodes(tensor: torch.Tensor) -> set:
    """The backward passes of compiled code that lead to a tensor."""
    seen, todo = set(), [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [earlier for earlier, _ in node.next_functions]
    return {node for node in seen if "CompiledFunction" in node.name()}


def numbers_of_a_step(call, network, images) -> torch.Tensor:
    output = call(images)
    (output.logits.square().mean() + output.taps["stage3"].mean()).backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    statistics = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    return torch.cat([t.detach().flatten() for t in (output.logits, *gradients, *statistics)])


@pytest.fixture
def traced(monkeypatch) -> list[torch.nn.Module]:
    """Instead of compiling, the networks that would be called."""
    seen = []

    def call(network, images, taps):
        seen.append(network)
        return forward(network, images, taps)

    monkeypatch.setattr(kdbench.training.compiled_students, "compiled_forward", lambda _: call)
    return seen


def test_micro_batches_of_full_batches_are_compiled(traced, monkeypatch, tmp_path):
    """And train as they do without."""
    monkeypatch.chdir(tmp_path)
    expected = weights(train(config("schedule.micro_batches=2", "runs_dir=eager")))
    sizes = []

    def losses_of(method, batch, student, teachers):
        sizes.append(len(batch.labels))
        return losses_of_output(method, batch, student, teachers)

    students, steps = kdbench.training.compiled_students, kdbench.training.recorded_step
    monkeypatch.setattr(students, "compiles", lambda runtime, steps: True)
    monkeypatch.setattr(steps, "compiles_losses", lambda runtime: True)
    compiler = kdbench.training.compiled_losses
    monkeypatch.setattr(compiler, "compile_losses", lambda eager: losses_of)
    monkeypatch.setattr(torch.random, "fork_rng", lambda *devices: memoryview(b""))
    found = weights(train(config("schedule.micro_batches=2", "runs_dir=compiled")))
    assert same(found, expected)
    # Two epochs of two batches of 16 images, and one of 8; one more each compares.
    assert sizes == [8] * (1 + 2 * 4)
    assert len(traced) == 1 + 2 * 4


def test_the_trial_leaves_the_student_as_it_is(traced):
    network = student()
    before = copy.deepcopy(network.state_dict())
    try_out(network, ("pooled",), SIZE, 1e-3, Runtime("cpu"))
    assert len(traced) == 1
    assert traced[0] is not network
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_other_logits_are_refused(traced, monkeypatch):
    monkeypatch.setattr(
        kdbench.training.compiled_students,
        "compiled_forward",
        lambda _: lambda network, images, taps: (2 * forward(network, images, ())[0], ()),
    )
    with pytest.raises(ValueError, match=r"logits are off by 1.0e\+00"):
        try_out(student(), (), SIZE, 1e-3, Runtime("cpu"))


@pytest.mark.parametrize(
    ("compile", "steps", "wanted"),
    [
        ("auto", WORTH_COMPILING, True),
        ("auto", WORTH_COMPILING - 1, False),
        ("on", 1, True),
        ("off", 10**9, False),
    ],
)
def test_long_runs_on_a_gpu_are_compiled(monkeypatch, compile, steps, wanted):
    monkeypatch.setattr(kdbench.training.compiled_students, "try_out", lambda *arguments: None)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: memoryview(b""))
    runtime = SimpleNamespace(device=torch.device("cuda"), compile=compile, overlaps=False)
    network = student()
    found = for_training(network, ("pooled",), SIZE, "fp32", runtime, steps, print)
    assert isinstance(found, CompiledStudent) == wanted
    assert wanted or found is network
    assert for_training(network, (), SIZE, "fp32", Runtime("cpu"), steps, print) is network


def test_a_failure_is_one_message(monkeypatch, capsys):
    def fail(*arguments):
        raise RuntimeError("no Triton\nand a trace")

    monkeypatch.setattr(kdbench.training.compiled_students, "try_out", fail)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: memoryview(b""))
    network = student()
    assert for_training(network, (), SIZE, "bf16", ON_A_GPU, 10**9, print) is network
    line = "the student is not compiled (no Triton): it runs as it is\n"
    assert capsys.readouterr().out == line
