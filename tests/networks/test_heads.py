"""Networks whose head a method changes, and the methods that do so, on the standard pairs."""

import copy
from functools import cache

import pytest
import torch
from torch import nn

from kdbench.assembly.build import build_method, set_up
from kdbench.assembly.probes import probe_network, training_set
from kdbench.data.memory.synthetic import synthetic
from kdbench.errors import ConfigError
from kdbench.networks.adapters import last_stage, map_classifier
from kdbench.networks.forward import teacher_outputs
from kdbench.networks.heads import ReusedHead, with_class_maps
from kdbench.networks.mobilenetv2 import MobileNetV2
from kdbench.networks.resnet import resnet8, resnet14
from kdbench.networks.wrn import wrn_16_1
from kdbench.schema.check import check_node
from kdbench.tasks.classification.losses import losses_and_sums
from kdbench.types import Affine, Batch, NetworkProbe
from support.commands import compose_method
from support.zoo import constructor

CLASSES = 10
PAIRS = [
    ("resnet32x4", "resnet8x4"),
    ("resnet32x4", "ShuffleV2"),
    ("vgg13", "MobileNetV2"),
    ("ResNet50", "vgg8"),
    ("wrn_40_2", "wrn_16_2"),
]
METHODS = ["simkd", "cat_kd", "sdd", "srrl", "kd_pp", "srd", "itrd"]
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
DATASET = synthetic(
    num_classes=CLASSES,
    num_train=4,
    num_test=4,
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
    torch.manual_seed(0)
    return constructor(name)(num_classes=CLASSES).eval().requires_grad_(False)


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
@pytest.mark.parametrize("name", METHODS)
def test_a_step_between_the_standard_pairs(name, teacher, student):
    method = build_method(check_node("method", compose_method(name)), seed=0)
    torch.manual_seed(1)
    network = constructor(student)(num_classes=CLASSES)
    network = set_up(method, network, {"teacher": frozen(teacher)}, DATASET, seed=0).train()
    batch = Batch(IMAGES, torch.arange(4), torch.arange(4), torch.tensor(3.0))
    batch = batch._replace(drawn=method.draw(batch, torch.Generator().manual_seed(0)))
    losses, _ = losses_and_sums(network, method, batch, teacher_outputs([frozen(teacher)], batch))
    losses.total().backward()
    for owner in (network, method):
        for key, parameter in owner.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("make", [resnet8, MobileNetV2, wrn_16_1])
def test_the_average_of_the_class_maps_are_the_logits(make, bias):
    network = with_class_maps(make(num_classes=CLASSES), bias=bias).double().eval()
    output = network(IMAGES.double())
    assert tuple(output.taps) == network.TAPS
    torch.testing.assert_close(output.taps["class_map"].mean(dim=(2, 3)), output.logits)


def test_class_maps_leave_an_ordinary_network():
    """What is saved loads into the network that it was; without a bias that one is 0."""
    network = with_class_maps(resnet8(num_classes=CLASSES), bias=False)
    assert "fc.bias" not in dict(network.named_parameters())
    plain = resnet8(num_classes=CLASSES)
    plain.load_state_dict(network.state_dict())
    assert not plain.fc.bias.any()
    assert torch.equal(plain.eval()(IMAGES).logits, network.eval()(IMAGES).logits)


def test_a_copy_makes_class_maps_with_its_own_weights():
    network = with_class_maps(resnet8(num_classes=CLASSES)).eval()
    other = copy.deepcopy(network)
    nn.init.zeros_(other.fc.weight)
    assert not other(IMAGES).taps["class_map"][:, :, 0, 0].sub(other.fc.bias).any()
    assert network(IMAGES).taps["class_map"][:, :, 0, 0].sub(network.fc.bias).any()


def reused(student: nn.Module, projection: nn.Module, side: int = 8) -> ReusedHead:
    probe = probe_network(student, training_set(DATASET))
    classifier = Affine(torch.ones(CLASSES, 64), torch.zeros(CLASSES))
    return ReusedHead(student, probe.image, "stage3", projection, side, classifier)


def test_a_perfect_projection_gives_the_classifiers_own_logits():
    teacher = frozen("resnet8")
    student, probe = (
        copy.deepcopy(teacher).requires_grad_(),
        probe_network(teacher, training_set(DATASET)),
    )
    head = ReusedHead(student, probe.image, "stage3", nn.Identity(), 8, probe.classifier)
    torch.testing.assert_close(head.eval()(IMAGES).logits, teacher(IMAGES).logits)


@pytest.mark.parametrize(
    ("ask", "line"),
    [
        (lambda bare: with_class_maps(nn.Conv2d(3, 3, 1)), "no linear classifier to make class"),
        (lambda bare: last_stage(bare), "a network has no stage: name stage1"),
        (lambda bare: map_classifier(bare, "teacher"), "the teacher has no linear classifier on"),
    ],
)
def test_a_network_that_lacks_what_is_read_is_one_line(ask, line):
    with pytest.raises(ConfigError, match=line):
        ask(NetworkProbe({"map": torch.Size((4, 8, 8))}))


def test_a_larger_stage_is_pooled_before_the_projection():
    output = reused(resnet14(num_classes=CLASSES), nn.Identity(), side=4).eval()(IMAGES)
    pooled = nn.functional.avg_pool2d(output.taps["stage3"], 2)
    torch.testing.assert_close(output.taps["projected"], pooled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "unread"),
    [
        (resnet8, {"fc.weight", "fc.bias"}),
        (wrn_16_1, {"bn1.weight", "bn1.bias", "fc.weight", "fc.bias"}),
    ],
)
def test_what_the_projection_does_not_read_is_not_trained(make, unread):
    student = make(num_classes=CLASSES)
    before = {name for name, _ in student.named_parameters()}
    state = set(student.state_dict())
    head = reused(student, nn.Identity())
    after = {name.removeprefix("student.") for name, _ in head.named_parameters()}
    assert before - after == unread
    assert {name.removeprefix("student.") for name in head.state_dict()} == {
        *state,
        "teacher_weight",
        "teacher_bias",
    }
    assert student.training
