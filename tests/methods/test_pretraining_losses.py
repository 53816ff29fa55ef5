"""AB and FSP are held against released values in test_golden.py."""

import math

import pytest
import torch

from support.pretraining_losses import ab_loss, fsp_loss, ft_loss


def maps(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def factor(sample: torch.Tensor) -> list[float]:
    """One sample's map [C, H, W]: the mean of squares over channels, as a unit vector."""
    channels = sample.flatten(1).tolist()
    means = [sum(c[i] ** 2 for c in channels) / len(channels) for i in range(len(channels[0]))]
    norm = math.sqrt(sum(m * m for m in means))
    return [m / norm for m in means]


def test_ft_is_the_formula_sample_by_sample():
    student, teacher = maps(0, 3, 4, 4, 4), maps(1, 3, 5, 2, 2)
    halved = student.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))
    expected = [
        sum(abs(a - b) for a, b in zip(factor(s), factor(t), strict=True)) / 4
        for s, t in zip(halved, teacher, strict=True)
    ]
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(ft_loss(student, teacher), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(1.5, 0.1, 0.0), (0.5, 0.1, 0.25), (-1.5, -0.1, 0.0), (-0.5, 0.0, 0.25), (0.5, -0.1, 2.25)],
)
def test_ab_wants_the_teacher_s_side_and_a_margin(student, teacher, expected):
    shallow = torch.zeros(1, 1, 1, 1)  # one stage before: half the weight, an error of 1
    pair = [torch.full((1, 1, 1, 1), value) for value in (student, teacher)]
    loss = ab_loss([shallow, pair[0]], [shallow, pair[1]])
    torch.testing.assert_close(loss, torch.tensor([3 / 1000 * (0.5 + expected)]))


def test_fsp_is_the_formula_across_sizes():
    student, teacher = ([maps(seed, 2, 3, 4, 4), maps(seed + 1, 2, 5, 2, 2)] for seed in (0, 2))
    flows = []
    for first, second in (student, teacher):
        halved = first.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))
        flows.append(torch.einsum("bchw,bdhw->bcd", halved, second) / 4)
    expected = (flows[0] - flows[1]).square().mean(dim=(1, 2))
    torch.testing.assert_close(fsp_loss(student, teacher), expected, rtol=1e-12, atol=0)
