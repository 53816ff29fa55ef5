import math

import torch
from torch.nn import functional as F

from kdbench.methods.dcd import dcd_loss


def vectors(seed: int) -> torch.Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)).double()


def test_matches_the_formula_by_hand():
    student, teacher = vectors(0), vectors(1)
    cosine = F.cosine_similarity(student[:, None], teacher[None], dim=2)
    for log_scale, scale in ((1.0, math.e), (5.0, 10.0)):
        rows = torch.softmax(scale * cosine, dim=1)
        columns = torch.softmax(scale * cosine, dim=0).T
        contrast = -torch.stack([rows[b, b].log() for b in range(5)]).mean()
        agreement = (columns * (columns / rows).log()).sum(dim=1).mean()
        found = dcd_loss(student, teacher, torch.tensor(log_scale).double(), 0.5, 10.0)
        torch.testing.assert_close(found, contrast + 0.5 * agreement, rtol=1e-6, atol=0)


def test_a_bias_would_change_nothing():
    """Which is why there is none: softmax over rows or columns ignores a constant."""
    cosine = F.cosine_similarity(vectors(0)[:, None], vectors(1)[None], dim=2)
    for dim in (0, 1):
        torch.testing.assert_close(
            torch.log_softmax(cosine + 3.0, dim), torch.log_softmax(cosine, dim)
        )
