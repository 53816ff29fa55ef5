import math

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods.cat_kd import CATKD, cat_loss


def maps(seed: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 5, side, side, generator=generator, dtype=torch.float64)


def by_hand(student: torch.Tensor, teacher: torch.Tensor, normalise: bool) -> float:
    """One sample's loss at 2x2, cell by cell; [K, H, W] each, of even sides."""
    total = 0.0
    for pair in zip(student, teacher, strict=True):
        cells = []
        for one in pair:
            half = len(one) // 2
            rows = (slice(0, half), slice(half, None))
            values = [one[r, c].sum().item() / half**2 for r in rows for c in rows]
            length = math.sqrt(sum(v * v for v in values)) if normalise else 1.0
            cells.append([v / length for v in values])
        total += sum((s - t) ** 2 for s, t in zip(*cells, strict=True))
    return total / (4 * len(student))


@pytest.mark.parametrize("normalise", [True, False])
def test_follows_the_formula_between_maps_of_two_sizes(normalise):
    student, teacher = maps(0, 8), maps(1, 4)
    expected = [by_hand(s, t, normalise) for s, t in zip(student, teacher, strict=True)]
    found = cat_loss(student, teacher, 2, normalise)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_normalised_maps_have_a_place_and_no_size():
    student = maps(0, 4)
    assert cat_loss(student, 3 * student, 4, normalise=True).max() < 1e-30
    assert cat_loss(student, 3 * student, 4, normalise=False).min() > 0.1


def test_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.resolution must be above 0"):
        CATKD(resolution=0)
