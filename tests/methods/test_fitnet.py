import pytest
import torch
from torch import nn

from kdbench.errors import ConfigError
from kdbench.methods.fitnet import FitNet
from kdbench.networks.adapters import conv_regressor
from kdbench.types import Batch, NetworkProbe, Output, Probe

BATCH = Batch(torch.empty(2, 0), torch.tensor([0, 1]), torch.arange(2), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "kernel"),
    [
        ((4, 8, 8), (5, 8, 8), nn.Conv2d, 1),
        ((4, 16, 16), (5, 8, 8), nn.Conv2d, 3),
        ((4, 8, 8), (5, 16, 16), nn.ConvTranspose2d, 4),
        ((4, 8, 8), (5, 6, 6), nn.Conv2d, 3),
        ((4, 16, 16), (5, 4, 4), nn.Conv2d, 13),
    ],
)
def test_the_regressor_reaches_the_teacher_s_shape(student, teacher, kind, kernel):
    regressor = conv_regressor(student, teacher)
    assert type(regressor[0]) is kind
    assert regressor[0].kernel_size == (kernel, kernel)
    assert regressor(torch.ones(2, *student)).shape == (2, *teacher)


def test_no_regressor_enlarges_a_map_by_four():
    with pytest.raises(ConfigError, match="8x8 map to the teacher's 32x32: choose another tap"):
        conv_regressor((4, 8, 8), (5, 32, 32))


def fitnet(**settings) -> FitNet:
    torch.manual_seed(0)
    student = NetworkProbe({"stage2": torch.Size([4, 8, 8]), "pooled": torch.Size([4])})
    teacher = NetworkProbe({"stage2": torch.Size([5, 16, 16]), "pooled": torch.Size([5])})
    method = FitNet(**settings)
    method.setup(Probe(student, (teacher,), 3, torch.tensor([0, 1, 2])))
    return method.double()


def test_the_hint_is_a_mean_of_squares_over_the_map():
    method = fitnet(hint_weight=100.0)
    student = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    reached = method.regressor(student).detach()
    offset = torch.tensor([0.0, 0.5], dtype=torch.float64)  # of each sample's map
    teacher = Output(torch.zeros(2, 3), {"stage2": reached + offset[:, None, None, None]})
    terms = method(BATCH, Output(torch.zeros(2, 3), {"stage2": student}), (teacher,))
    torch.testing.assert_close(terms["hint"], 100 * offset.square(), rtol=1e-12, atol=1e-12)


def test_a_vector_is_no_hint():
    with pytest.raises(ConfigError, match=r"tap 'pooled' has shape \[4\], a map"):
        fitnet(tap="pooled")
