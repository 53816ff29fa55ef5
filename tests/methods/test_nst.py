import pytest
import torch

from kdbench.methods.nst import nst_loss


def maps(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def mean_kernel(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mean of (a^T b)^2 over the channels a, b of two maps [C, H, W]."""
    first, second = (m.flatten(1) for m in (first, second))
    kernels = [float((a / a.norm()) @ (b / b.norm())) ** 2 for a in first for b in second]
    return sum(kernels) / len(kernels)


@pytest.mark.parametrize("channels", [(3, 2), (3, 12)], ids=["over channels", "over positions"])
def test_nst_is_the_squared_mmd_of_the_channels(channels):
    student, teacher = maps(0, 2, channels[0], 3, 3), maps(1, 2, channels[1], 3, 3)
    expected = [
        mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t)
        for s, t in zip(student, teacher, strict=True)
    ]
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(nst_loss(student, teacher), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("side", [2, 3])
def test_nst_is_zero_for_the_same_channels_in_any_order_and_scale(side):
    teacher = maps(0, 2, 6, side, side)
    student = 3 * teacher[:, torch.tensor([5, 3, 1, 0, 2, 4])]
    torch.testing.assert_close(nst_loss(student, teacher), torch.zeros(2).double())
