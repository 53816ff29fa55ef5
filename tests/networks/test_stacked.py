"""Stacked networks against each network by itself, in float64."""

import copy
from functools import partial

import pytest
import torch

from kdbench.networks.convolution_choices import compute
from kdbench.networks.stacked import Stacked, architecture
from kdbench.system.precision import at_precision
from support.zoo import constructor, network_names

STACKED = [name for name in network_names() if name != "GoogLeNet"]  # which has dropout
QUICK = ("resnet8", "resnet8x4", "MobileNetV2", "ShuffleV2", "vgg8", "wrn_16_1")


def seeded(name: str, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    network = constructor(name)(num_classes=10).double()
    return network.to(memory_format=torch.channels_last).train()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.long] * (n not in QUICK)) for n in STACKED],
)
def test_each_network_computes_and_learns_what_it_would_alone(name):
    """Logits, taps, gradients and running statistics of three networks."""
    stacked = [seeded(name, seed) for seed in range(3)]
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3)).double()
    tap = next(iter(copy.deepcopy(stacked[0])(images[:2]).taps))
    alone = copy.deepcopy(stacked)
    stack = Stacked(stacked, [tap])
    losses = [loss_of(output, tap) for output in stack(images)]
    gradients = torch.autograd.grad(sum(losses), list(stack.trained.values()))
    for number, network in enumerate(alone):
        loss = loss_of(network(images), tap)
        loss.backward()
        torch.testing.assert_close(losses[number], loss, rtol=1e-9, atol=1e-11)
        for key, gradient in zip(stack.trained, gradients, strict=True):
            expected = network.get_parameter(key).grad
            close(gradient[number], expected, key)
        for key, value in network.state_dict().items():
            close(stacked[number].state_dict()[key].double(), value.double(), key)


def loss_of(output, tap: str) -> torch.Tensor:
    return output.logits.square().mean() + output.taps[tap].square().mean()


def close(found: torch.Tensor, expected: torch.Tensor, key: str) -> None:
    assert (found - expected).norm() <= 1e-9 * expected.norm() + 1e-12, key


def test_a_network_and_its_row_are_one_memory():
    networks = [seeded("resnet8", seed) for seed in range(2)]
    kept = networks[1].conv1.weight
    stack = Stacked(networks, [])
    assert networks[1].conv1.weight is kept, "an optimizer holds it"
    assert kept.is_contiguous(memory_format=torch.channels_last)
    for network in networks:
        network.load_state_dict(seeded("resnet8", 7).state_dict())
    first, second = stack.parameters["conv1.weight"]
    assert torch.equal(first, second)


def test_what_an_output_depends_on():
    stack = Stacked([seeded("resnet8", seed) for seed in range(2)], ["stage1"])
    images = torch.randn(1, 3, 32, 32).double()
    early = stack.reached_by(["stage1"], images)
    assert "conv1.weight" in early
    assert not any(name.startswith(("layer3", "fc")) for name in early)
    assert stack.reached_by(["stage1", ""], images) == set(stack.trained)


def test_networks_of_another_make_are_no_company():
    one, two = seeded("resnet8", 0), seeded("resnet8", 1)
    assert architecture(one) == architecture(two)
    two.fc.requires_grad_(False)
    assert architecture(one) != architecture(two)
    assert architecture(one) != architecture(seeded("resnet14", 0))
    assert architecture(one) != architecture(seeded("resnet8", 0).float())


@pytest.mark.long
@pytest.mark.parametrize(("precision", "close"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_compiled_it_computes_the_same(precision, close, monkeypatch):
    """Traced and differentiated whole, without the compiler behind, which takes a minute."""
    traced = partial(torch.compile, dynamic=False, backend="aot_eager")
    monkeypatch.setattr("kdbench.networks.stacked.compiled", traced)
    networks = [at_precision(seeded("resnet8", seed).float(), precision) for seed in range(2)]
    eager = Stacked(copy.deepcopy(networks), ["stage3"])
    compiled = Stacked(networks, ["stage3"])
    compiled.compile(4)
    images = torch.randn(4, 3, 32, 32)
    found, expected = (numbers_of_a_step(stack, images) for stack in (compiled, eager))
    assert (found - expected).norm() <= close * expected.norm()
    assert compiled(images[:3])[1].logits.shape == (3, 10), "a short batch is not compiled"


def numbers_of_a_step(stack: Stacked, images: torch.Tensor) -> torch.Tensor:
    total = sum(loss_of(output, "stage3") for output in stack(images))
    gradients = torch.autograd.grad(total, list(stack.trained.values()))
    statistics = [buffer for buffer in stack.buffers.values() if buffer.is_floating_point()]
    return torch.cat([tensor.detach().flatten() for tensor in (*gradients, *statistics)])


def test_a_stack_in_bf16_convolves_in_bf16(monkeypatch):
    """Under vmap, autocast does not reach PyTorch's own convolution."""
    seen = set()

    def watched(name, tensors, settings):
        seen.update(tensor.dtype for tensor in tensors)
        return compute(name, tensors, settings)

    monkeypatch.setattr("kdbench.networks.stacked_convolution.compute", watched)
    networks = [at_precision(seeded("resnet8", seed).float(), "bf16") for seed in range(2)]
    alone = copy.deepcopy(networks)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    stack = Stacked(networks, ["stage3"])
    found = stack(images)
    torch.autograd.grad(sum(loss_of(o, "stage3") for o in found), list(stack.trained.values()))
    assert seen == {torch.bfloat16}
    for output, network in zip(found, alone, strict=True):
        expected = network(images).logits
        assert (output.logits - expected).norm() <= 2e-2 * expected.norm()
