"""Relations, contrast and several teachers between networks of the zoo: sizes and shapes."""

from functools import cache

import pytest
import torch

from kdbench.assembly.build import build_method
from kdbench.assembly.probes import check_taps, probe_network, training_set
from kdbench.data.memory.synthetic import synthetic
from kdbench.methods.base import Method
from kdbench.schema.check import check_node
from kdbench.types import Batch, NetworkProbe, Output, Probe
from support.commands import compose_method
from support.zoo import constructor, parameter_count

EMBEDDINGS = {  # trained parameters of CRD and CC, as counted in RepDistiller
    ("resnet32x4", "resnet8x4"): 65792,
    ("resnet32x4", "ShuffleV2"): 164096,
    ("vgg13", "MobileNetV2"): 229632,
    ("ResNet50", "vgg8"): 327936,
    ("wrn_40_2", "wrn_16_2"): 33024,
}
MIXTURES = [
    (("resnet32x4", "vgg13", "wrn_40_2"), "MobileNetV2"),
    (("ResNet50", "resnet32x4"), "ShuffleV2"),
    (("vgg13",), "vgg8"),
]
DATASET = synthetic(
    num_classes=10,
    num_train=20,
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


def terms_of(method: str, teachers: tuple[str, ...], student: str) -> tuple[Method, dict]:
    """A method between these networks, and its terms on random features of their shapes."""
    torch.manual_seed(0)
    built = build_method(node_of(method), seed=0)
    probes = {name: probe_of(name) for name in (student, *teachers)}
    check_taps(built, probes)
    built.setup(Probe(probes[student], tuple(map(probe_of, teachers)), 10, DATASET.train.labels))
    index = torch.arange(4)
    batch = Batch(torch.empty(0), DATASET.train.labels[index], index, torch.tensor(2.0))
    batch = batch._replace(drawn=built.draw(batch, torch.Generator().manual_seed(0)))
    outputs = [
        Output(
            torch.randn(4, 10), {tap: torch.rand(4, *s) for tap, s in probe_of(name).taps.items()}
        )
        for name in (student, *teachers)
    ]
    terms = built(batch, outputs[0], tuple(outputs[1:]))
    assert all(term.isfinite().all() for term in terms.values())
    return built, terms


@pytest.mark.parametrize("method", ["sp", "cc", "rkd", "pkt", "crd"])
@pytest.mark.parametrize("pair", EMBEDDINGS, ids="-".join)
def test_pairs(pair, method):
    teacher, student = pair
    built, terms = terms_of(method, (teacher,), student)
    embeds = method in ("cc", "crd")
    assert parameter_count(built) == (EMBEDDINGS[pair] if embeds else 0)
    shapes = {"ce": (4,), "crd": (4,)}
    assert all(term.shape == shapes.get(name, ()) for name, term in terms.items())


@pytest.mark.parametrize("method", ["fitnet_mkd", "ca_mkd", "de_mkd_feature", "aekd"])
@pytest.mark.parametrize("mixture", MIXTURES, ids=lambda m: "+".join(m[0]) + "-" + m[1])
def test_mixed_teachers(mixture, method):
    _, terms = terms_of(method, *mixture)
    assert all((term > 0).all() for term in terms.values())
