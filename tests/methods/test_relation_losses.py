"""Losses of short formulas over features and their relations, each written out another way."""

import math

import pytest
import torch
from torch.nn import functional as F

from kdbench.methods.at import at_loss
from kdbench.methods.cc import cc_loss
from kdbench.methods.dcd import dcd_loss
from kdbench.methods.ickd import ICKD, channel_relations, ickd_loss
from kdbench.methods.nst import nst_loss
from kdbench.methods.pkt import pkt_loss
from kdbench.methods.sp import sp_loss


def drawn(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_cc_formula():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    expected = 0.0
    for i in range(4):
        for d in range(3):
            here, following = (abs(student[n, d] - teacher[n, d]) for n in (i, i + 1))
            expected += here * following / 4
    torch.testing.assert_close(cc_loss(student, teacher), expected)


def test_cc_a_batch_of_one_has_no_neighbours():
    assert cc_loss(torch.ones(1, 3), torch.zeros(1, 3)) == 0


def gram_distance(student: torch.Tensor, teacher: torch.Tensor) -> float:
    total, count = 0.0, len(student)
    for i in range(count):
        rows = [[(f[i] * f[j]).sum() for j in range(count)] for f in (student, teacher)]
        norms = [sum(value**2 for value in row) ** 0.5 for row in rows]
        for j in range(count):
            total += (rows[0][j] / norms[0] - rows[1][j] / norms[1]) ** 2
    return total / count**2


def test_sp_formula_between_unequal_shapes():
    student, teacher = drawn(0, 5, 3, 4, 4), drawn(1, 5, 7, 2, 2)
    torch.testing.assert_close(sp_loss(student, teacher), gram_distance(student, teacher))


def test_sp_scaled_and_rotated_features_are_the_same():
    student = drawn(0, 5, 6)
    rotation = torch.linalg.qr(drawn(1, 6, 6)).Q
    assert sp_loss(student, 3 * student @ rotation) < 1e-28


def test_sp_a_dead_student_is_finite():
    student = torch.zeros(5, 6, requires_grad=True)
    sp_loss(student, drawn(0, 5, 6).float()).backward()
    assert student.grad.isfinite().all()


def test_ickd_matches_the_formula_by_hand():
    student, teacher = drawn(0, 2, 3, 4, 4), drawn(1, 2, 3, 4, 4)
    expected = []
    for own, theirs in zip(student, teacher, strict=True):
        grams = []
        for maps in (own, theirs):
            gram = torch.stack([torch.stack([(a * b).sum() for b in maps]) for a in maps])
            grams.append(gram / gram.norm(dim=1, keepdim=True))
        expected.append((grams[0] - grams[1]).square().sum() / 3)
    torch.testing.assert_close(ickd_loss(student, teacher), torch.stack(expected))


def test_ickd_maps_may_differ_in_size_and_scale():
    maps = drawn(0, 2, 3, 4, 4)
    torch.testing.assert_close(channel_relations(maps), channel_relations(5 * maps))
    larger = maps.repeat_interleave(2, dim=2)
    torch.testing.assert_close(ickd_loss(maps, larger), torch.zeros(2).double(), atol=1e-12, rtol=0)
    assert ICKD().taps == ("map",)


def test_dcd_matches_the_formula_by_hand():
    student, teacher = drawn(0, 5, 4), drawn(1, 5, 4)
    cosine = F.cosine_similarity(student[:, None], teacher[None], dim=2)
    for log_scale, scale in ((1.0, math.e), (5.0, 10.0)):
        rows = torch.softmax(scale * cosine, dim=1)
        columns = torch.softmax(scale * cosine, dim=0).T
        contrast = -torch.stack([rows[b, b].log() for b in range(5)]).mean()
        agreement = (columns * (columns / rows).log()).sum(dim=1).mean()
        found = dcd_loss(student, teacher, torch.tensor(log_scale).double(), 0.5, 10.0)
        torch.testing.assert_close(found, contrast + 0.5 * agreement, rtol=1e-6, atol=0)


def test_dcd_a_bias_would_change_nothing():
    """Which is why there is none: softmax over rows or columns ignores a constant."""
    cosine = F.cosine_similarity(drawn(0, 5, 4)[:, None], drawn(1, 5, 4)[None], dim=2)
    for dim in (0, 1):
        torch.testing.assert_close(
            torch.log_softmax(cosine + 3.0, dim), torch.log_softmax(cosine, dim)
        )


def attention(sample: torch.Tensor, power: float) -> list[float]:
    """One sample's map [C, H, W], its positions in a row."""
    channels = sample.flatten(1).tolist()
    values = [sum(abs(c[i]) ** power for c in channels) for i in range(len(channels[0]))]
    norm = math.sqrt(sum(v * v for v in values))
    return [v / norm for v in values]


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_at_is_the_formula_also_for_negative_values(power):
    student, teacher = drawn(0, 3, 4, 2, 2), drawn(1, 3, 5, 4, 4)
    halved = teacher.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))
    expected = []
    for s, t in zip(student, halved, strict=True):
        pairs = list(zip(attention(s, power), attention(t, power), strict=True))
        expected.append(sum((a - b) ** 2 for a, b in pairs) / len(pairs))
    loss = at_loss(student, teacher, power)
    torch.testing.assert_close(
        loss, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_at_attention_has_no_scale_and_survives_dead_maps():
    teacher = drawn(0, 3, 4, 2, 2)
    torch.testing.assert_close(at_loss(5 * teacher, teacher, 2.0), torch.zeros(3).double())
    dead = torch.zeros(3, 4, 2, 2, requires_grad=True)
    at_loss(dead, teacher.float(), 2.0).sum().backward()
    assert dead.grad.isfinite().all()


def mean_kernel(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mean of (a^T b)^2 over the channels a, b of two nst_maps [C, H, W]."""
    first, second = (m.flatten(1) for m in (first, second))
    kernels = [float((a / a.norm()) @ (b / b.norm())) ** 2 for a in first for b in second]
    return sum(kernels) / len(kernels)


@pytest.mark.parametrize("channels", [(3, 2), (3, 12)], ids=["over channels", "over positions"])
def test_nst_is_the_squared_mmd_of_the_channels(channels):
    student, teacher = drawn(0, 2, channels[0], 3, 3), drawn(1, 2, channels[1], 3, 3)
    expected = [
        mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t)
        for s, t in zip(student, teacher, strict=True)
    ]
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(nst_loss(student, teacher), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("side", [2, 3])
def test_nst_is_zero_for_the_same_channels_in_any_order_and_scale(side):
    teacher = drawn(0, 2, 6, side, side)
    student = 3 * teacher[:, torch.tensor([5, 3, 1, 0, 2, 4])]
    torch.testing.assert_close(nst_loss(student, teacher), torch.zeros(2).double())


def cosines(points: torch.Tensor) -> list[list[float]]:
    rows = []
    for a in points:
        row = [float((a @ b / (a.norm() * b.norm()) + 1) / 2) for b in points]
        rows.append([value / sum(row) for value in row])
    return rows


def test_pkt_formula():
    """To 1e-5, which is what the published constants of 1e-7 change."""
    student, teacher = drawn(0, 5, 4), drawn(1, 5, 6)
    own, theirs = (torch.tensor(cosines(v), dtype=torch.float64) for v in (student, teacher))
    expected = sum(
        theirs[i, j] * (theirs[i, j] / own[i, j]).log() / 25 for i in range(5) for j in range(5)
    )
    found = pkt_loss(student, teacher)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(pkt_loss(student, teacher, eps=0.0), expected)


def test_pkt_turned_and_scaled_features_are_the_same():
    rotation = torch.linalg.qr(drawn(1, 4, 4)).Q
    assert pkt_loss(drawn(0, 5, 4), 3 * drawn(0, 5, 4) @ rotation).abs() < 1e-8


def test_pkt_a_dead_sample_is_finite():
    student = drawn(0, 5, 4).float()
    student[2] = 0
    student.requires_grad_()
    pkt_loss(student, drawn(0, 5, 6).float()).backward()
    assert student.grad.isfinite().all()
