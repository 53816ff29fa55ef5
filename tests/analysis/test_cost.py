import pytest
import torch

from kdbench.analysis.cost import cost
from kdbench.networks.resnet import resnet8
from support.zoo import mac_count, parameter_count


def test_counts_are_those_of_hooks():
    network, image = resnet8(10).eval(), torch.randn(1, 3, 32, 32)
    found = cost(network, image.expand(64, -1, -1, -1).contiguous())
    assert found.parameters == parameter_count(network)
    assert found.macs == mac_count(network, image)
    assert found.latency_1_ms > 0
    assert found.images_per_second == pytest.approx(64_000 / found.latency_64_ms)
