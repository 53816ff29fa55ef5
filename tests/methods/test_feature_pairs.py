"""Feature methods between networks of the zoo: their extra parameters, and that shapes fit."""

from functools import cache

import pytest
import torch

from kdbench.assembly.build import build_method
from kdbench.assembly.probes import probe_network, training_set
from kdbench.data.memory.synthetic import synthetic
from kdbench.schema.check import check_node
from kdbench.types import Batch, NetworkProbe, Output, Probe
from support.commands import compose_method
from support.zoo import constructor, parameter_count

# Trainable parameters beside the student's, as counted in the released codes.
METHODS = ("at", "nst", "fitnet", "vid", "ofd", "reviewkd")
EXTRA = {
    ("wrn_40_2", "wrn_16_2"): (0, 0, 4288, 64736, 21952, 453830),
    ("wrn_40_2", "wrn_40_1"): (0, 0, 2240, 53984, 11200, 216006),
    ("wrn_40_2", "ShuffleV1"): (0, 0, 491712, 204512, 161728, 2984646),
    ("resnet56", "resnet20"): (0, 0, 1120, 16240, 5600, 114278),
    ("resnet32x4", "resnet8x4"): (0, 0, 16768, 258496, 86912, 1808774),
    ("resnet32x4", "ShuffleV1"): (0, 0, 983424, 495040, 323456, 4607366),
    ("resnet32x4", "ShuffleV2"): (0, 0, 475520, 328384, 156800, 4195718),
    ("vgg13", "vgg8"): (0, 0, 66304, 1820032, 609024, 9847560),
    ("vgg13", "MobileNetV2"): (0, 0, 4864, 1325952, 114944, 9640712),
    ("ResNet50", "vgg8"): (0, 0, 2098688, 12881664, 1744384, 28140040),
    ("ResNet50", "MobileNetV2"): (0, 0, 132608, 11533056, 395776, 27933192),
}
RUN = [("resnet32x4", "resnet8x4"), ("resnet32x4", "ShuffleV2"), ("vgg13", "MobileNetV2")]
RUN += [("ResNet50", "vgg8"), ("wrn_40_2", "wrn_16_2"), ("wrn_40_2", "MobileNetV2")]
DATASET = synthetic(
    num_classes=10,
    num_train=10,
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
def probe_of(name: str) -> NetworkProbe:
    return probe_network(constructor(name)(num_classes=10), training_set(DATASET))


@cache
def node_of(method: str) -> dict:
    return check_node("method", compose_method(method))


def set_up(method: str, teacher: str, student: str, device: str = "cpu"):
    built = build_method(node_of(method), seed=0)
    probe = Probe(probe_of(student), (probe_of(teacher),), 10, DATASET.train.labels)
    with torch.device(device):
        built.setup(probe)
    return built


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pair", EXTRA, ids="-".join)
def test_extra_parameters(pair, method):
    built = set_up(method, *pair, device="meta")  # 28 million are counted, not filled
    assert parameter_count(built) == EXTRA[pair][METHODS.index(method)]


def blank_output(name: str) -> Output:
    shapes = probe_of(name).taps
    return Output(torch.zeros(2, 10), {tap: torch.rand(2, *shape) for tap, shape in shapes.items()})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pair", RUN, ids="-".join)
def test_shapes_fit(pair, method):
    """Also where the teacher has a stage less than the student."""
    teacher, student = pair
    built = set_up(method, *pair)
    batch = Batch(torch.empty(2, 0), torch.tensor([0, 1]), torch.arange(2), torch.tensor(1.0))
    torch.manual_seed(0)
    terms = built(batch, blank_output(student), (blank_output(teacher),))
    for name, term in terms.items():
        assert term.shape == (2,), name
        assert term.isfinite().all(), name
