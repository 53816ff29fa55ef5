"""Teachers without their batch norms give the same numbers, up to rounding."""

import copy

import pytest
import torch
from torch import nn

from kdbench.networks.folding import fold_batch_norms
from kdbench.networks.tapped import timm_model
from kdbench.system.runtime import Runtime
from kdbench.teachers.frozen import freeze, in_chunks, mac_count
from support.machine import needs_compiler, needs_equal_rows
from support.zoo import constructor, network_names, trained
from support.zoo import mac_count as counted

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
# Each has a smaller one of the same blocks beside it.
BIG = {"ResNet34", "wrn_28_10", "wrn_40_4", "wrn_28_4", "vgg19", "vgg16", "resnet110"}


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def assert_same_outputs(folded: nn.Module, network: nn.Module) -> None:
    with torch.no_grad():
        found, expected = folded(IMAGES), network(IMAGES)
    assert found.taps.keys() == expected.taps.keys()
    for name, tap in [("logits", expected.logits), *expected.taps.items()]:
        other = found.logits if name == "logits" else found.taps[name]
        torch.testing.assert_close(other, tap, rtol=0, atol=1e-4 * tap.abs().max().item(), msg=name)


WRN = [name for name in network_names() if name.startswith("wrn")]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.long] * (n in BIG)) for n in network_names()]
)
def test_folded_networks_keep_logits_and_every_tap(name):
    network = trained(constructor(name)(num_classes=10))
    before = copy.deepcopy(network.state_dict())
    folded, count = fold_batch_norms(network, IMAGES[:2])
    assert count == norms(network) - norms(folded)
    # Before an activation and a convolution only the second norm of a block follows a convolution.
    pre_activation = {"DenseNet121": 58} | dict.fromkeys(WRN, norms(network) // 2)
    assert count == pre_activation.get(name, norms(network))
    assert_same_outputs(folded, network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_convolution_that_is_read_twice_stays():
    """WRN's stem feeds a norm, a shortcut and a tap."""
    folded, _ = fold_batch_norms(trained(constructor("wrn_16_1")(num_classes=10)), IMAGES)
    assert isinstance(folded.block1.layer[0].bn1, nn.BatchNorm2d)
    assert folded.conv1.bias is None
    assert isinstance(folded.block1.layer[0].bn2, nn.Identity)


def test_a_foreign_network_keeps_its_tapped_modules():
    taps = {"stem": "conv1", "normed": "bn1", "stage1": "layer1"}
    network = trained(timm_model("resnet10t", num_classes=10, taps={**taps, "stem": "conv1.0"}))
    folded, count = fold_batch_norms(network, IMAGES)
    assert 0 < count < norms(network), "the tapped convolution stays"
    assert_same_outputs(folded, network)


def test_without_batch_norms_it_is_the_network_itself():
    network = timm_model("test_vit", num_classes=10).eval()
    assert fold_batch_norms(network, torch.randn(1, 3, 160, 160)) == (network, 0)


def test_off_leaves_the_network_as_it_is():
    network = trained(constructor("resnet14")(num_classes=10))
    plain = freeze(network, IMAGES, "fp32", Runtime("cpu", compile="off"), 10, print)
    assert plain.network is network
    assert plain.facts == {"precision": "fp32", "folded": 0, "compiled": False}
    folded = freeze(network, IMAGES, "fp32", Runtime("cpu"), 10, print)
    assert folded.facts == {"precision": "fp32", "folded": 15, "compiled": False}


def test_long_runs_are_compiled_and_a_failure_is_one_message(monkeypatch, capsys):
    network = trained(constructor("resnet14")(num_classes=10))
    macs = mac_count(network, IMAGES)
    assert macs == counted(network, IMAGES[:1])

    def broken(*args, **kwargs):
        return lambda images: (_ for _ in ()).throw(RuntimeError("no compiler\nand more"))

    monkeypatch.setattr(torch, "compile", broken)
    for images, message in ((int(1e14 / macs) - 1, ""), (int(1e14 / macs) + 1, "no compiler")):
        teacher = freeze(network, IMAGES, "fp32", Runtime("cpu"), images, print)
        said = capsys.readouterr().out
        assert (f"is not compiled ({message})" in said) == bool(message)
        assert said.count("\n") == bool(message)
        assert teacher.facts["compiled"] is False
        assert teacher(IMAGES).logits.shape == (4, 10)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda logits: logits * 1.01, "the compiled logits are off by "),
        (
            lambda logits: logits * (1 + 1e-6 * torch.arange(len(logits))[:, None]),
            "the compiled logits depend on an image's place in the batch",
        ),
    ],
)
def test_a_compiler_that_computes_otherwise_is_not_believed(monkeypatch, capsys, spoil, message):
    def compiled(network, dynamic):
        def call(images):
            output = network(images)
            return output._replace(logits=spoil(output.logits))

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    network = trained(constructor("resnet8")(num_classes=10))
    teacher = freeze(network, IMAGES, "fp32", Runtime("cpu", compile="on"), 1, print)
    assert f"the teacher is not compiled ({message}" in capsys.readouterr().out
    assert teacher.facts["compiled"] is False


def test_chunks_do_not_show():
    network = trained(constructor("resnet8")(num_classes=10))
    images = torch.randn(40, 3, 32, 32)
    needs_equal_rows(network, images[:32], 16)
    sizes = []

    def watched(part):
        sizes.append(len(part))
        return network(part)

    found = in_chunks(watched, images, 16)
    assert sizes == [16, 16, 16]
    expected = network(images)
    assert torch.equal(found.logits, expected.logits)
    assert all(torch.equal(found.taps[name], tap) for name, tap in expected.taps.items())


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_compiled_it_gives_the_same_rows_in_every_batch():
    needs_compiler()
    network = trained(constructor("resnet8")(num_classes=10))
    images = torch.randn(200, 3, 32, 32)
    teacher = freeze(network, images, "fp32", Runtime("cpu", compile="on"), 1, print)
    assert teacher.facts["compiled"] is True
    with torch.no_grad():
        whole, eager = teacher(images), network(images)
        parts = [teacher(images[start : start + 7]) for start in range(0, 200, 7)]
    torch.testing.assert_close(whole.logits, eager.logits, rtol=1e-3, atol=1e-3)
    assert torch.equal(torch.cat([part.logits for part in parts]), whole.logits)
    assert torch.equal(torch.cat([part.taps["pooled"] for part in parts]), whole.taps["pooled"])
