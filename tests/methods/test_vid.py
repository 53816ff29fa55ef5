import math

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods.vid import VID, gaussian_nll
from kdbench.types import Batch, NetworkProbe, Output, Probe

BATCH = Batch(torch.empty(2, 0), torch.tensor([0, 1]), torch.arange(2), torch.tensor(1.0))


def maps(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def vid(**settings) -> VID:
    torch.manual_seed(0)
    student = NetworkProbe({"stage1": torch.Size([3, 4, 4])})
    teacher = NetworkProbe({"stage1": torch.Size([5, 2, 2])})
    method = VID(**settings)
    method.setup(Probe(student, (teacher,), 3, torch.tensor([0, 1, 2])))
    return method.double()


def test_the_density_is_gaussian():
    target, mean, variance = maps(0, 2, 3, 2, 2), maps(1, 2, 3, 2, 2), maps(2, 3).exp()
    normal = torch.distributions.Normal(mean, variance.sqrt()[:, None, None])
    expected = -normal.log_prob(target) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(
        gaussian_nll(target, mean, variance), expected.mean(dim=(1, 2, 3)), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("train_variance", [True, False])
def test_at_its_initial_variance_vid_is_a_tenth_of_mse(train_variance):
    """The defect of a variance that no optimizer holds, for all epochs; ours for the first step."""
    method = vid(train_variance=train_variance)
    student, teacher = maps(0, 2, 3, 4, 4), maps(1, 2, 5, 2, 2)
    pooled = student.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))
    error = (method.gaussians[0].mean(pooled) - teacher).square().mean(dim=(1, 2, 3))
    logits = torch.zeros(2, 3)
    terms = method(
        BATCH, Output(logits, {"stage1": student}), (Output(logits, {"stage1": teacher}),)
    )
    expected = error / 10 + 0.5 * math.log(5)
    torch.testing.assert_close(terms["vid"], expected, rtol=1e-6, atol=0)  # rho is in float32
    trained = [name for name, _ in method.named_parameters() if "variance" in name]
    assert bool(trained) == train_variance
    assert "gaussians.0.raw_variance" in method.state_dict()


def test_refuses_a_variance_below_its_minimum():
    with pytest.raises(ConfigError, match=r"initial_variance must be above min_variance=0.5"):
        VID(initial_variance=0.5, min_variance=0.5)
