"""Losses of short formulas over features of pairs of layers, each written out another way."""

import math

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods.cat_kd import CATKD, cat_loss
from kdbench.methods.semckd import RelationEncoder, SemCKD, attended_distance, attention_of
from kdbench.methods.srd import log_sum_distance
from kdbench.methods.vid import VID, gaussian_nll
from kdbench.types import Batch, NetworkProbe, Output, Probe


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
def test_cat_kd_follows_the_formula_between_maps_of_two_sizes(normalise):
    student, teacher = maps(0, 8), maps(1, 4)
    expected = [by_hand(s, t, normalise) for s, t in zip(student, teacher, strict=True)]
    found = cat_loss(student, teacher, 2, normalise)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_cat_kd_normalised_maps_have_a_place_and_no_size():
    student = maps(0, 4)
    assert cat_loss(student, 3 * student, 4, normalise=True).max() < 1e-30
    assert cat_loss(student, 3 * student, 4, normalise=False).min() > 0.1


def test_cat_kd_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.resolution must be above 0"):
        CATKD(resolution=0)


def feature(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_semckd_the_distance_matches_the_formula_by_hand():
    attention = feature(0, 4, 1, 2).abs()
    pairs = [
        [(feature(1, 4, 3, 2, 2), feature(2, 4, 3, 2, 2)), (feature(3, 4, 5), feature(4, 4, 5))]
    ]
    expected = sum(
        attention[b, 0, j].item() * (s[b] - t[b]).square().mean().item() / 4
        for b in range(4)
        for j, (s, t) in enumerate(pairs[0])
    )
    assert attended_distance(attention, pairs).item() == pytest.approx(expected, rel=1e-5)


def test_semckd_attention_is_a_softmax_over_the_teacher_s_layers():
    queries, keys = [feature(0, 4, 3)], [feature(seed, 4, 3) for seed in (1, 2, 3)]
    found = attention_of(queries, keys)
    scores = torch.stack([(queries[0] * key).sum(dim=1) for key in keys], dim=1)
    torch.testing.assert_close(found[:, 0], torch.softmax(scores, dim=1))


def test_semckd_a_short_batch_is_one_with_black_images_less():
    """Products with an image whose map is 0 are 0, as with one that is not there."""
    encoder, maps = RelationEncoder(8, 2), feature(0, 5, 3, 4, 4)
    padded = torch.cat([maps, torch.zeros(3, 3, 4, 4)])
    torch.testing.assert_close(encoder(maps), encoder(padded)[:5])


def test_semckd_says_what_to_set_for_a_larger_batch():
    method = SemCKD(batch_size=8)
    method.build([3], [3])
    with pytest.raises(ConfigError, match=r"of 9: set it to schedule\.batch_size"):
        method.match([feature(0, 9, 3, 4, 4)], [feature(1, 9, 3, 4, 4)])
    with pytest.raises(ConfigError, match=r"method.batch_size=2 must be 4 \(factor\) or more"):
        SemCKD(batch_size=2)


def features(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 + 2 * torch.randn(7, 4, generator=generator, dtype=torch.float64)


def test_srd_follows_the_formula():
    student, teacher = features(0), features(1)
    total = 0.0
    for d in range(4):
        columns = []
        for values in (student[:, d].tolist(), teacher[:, d].tolist()):
            mean = sum(values) / 7
            std = math.sqrt(sum((v - mean) ** 2 for v in values) / 7 + 1e-4)
            columns.append([(v - mean) / std for v in values])
        total += sum(abs(s - t) ** 3 for s, t in zip(*columns, strict=True))
    found = log_sum_distance(student, teacher, 3.0)
    torch.testing.assert_close(found, torch.tensor(math.log(total), dtype=torch.float64))


def test_srd_scale_and_offset_of_a_dimension_do_not_count():
    """Up to the 1e-4 beside the variance."""
    student, teacher = features(0), features(1)
    stretched = teacher * torch.tensor([10.0, 1.0, 1.0, 30.0]) - 5
    torch.testing.assert_close(
        log_sum_distance(student, stretched, 4.0),
        log_sum_distance(student, teacher, 4.0),
        rtol=1e-4,
        atol=0,
    )


def test_srd_a_dead_dimension_is_finite():
    student, teacher = features(0).requires_grad_(), features(1)
    teacher[:, 2] = 0
    log_sum_distance(student, teacher, 4.0).backward()
    assert student.grad.isfinite().all()


BATCH = Batch(torch.empty(2, 0), torch.tensor([0, 1]), torch.arange(2), torch.tensor(1.0))


def vid_maps(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def vid(**settings) -> VID:
    torch.manual_seed(0)
    student = NetworkProbe({"stage1": torch.Size([3, 4, 4])})
    teacher = NetworkProbe({"stage1": torch.Size([5, 2, 2])})
    method = VID(**settings)
    method.setup(Probe(student, (teacher,), 3, torch.tensor([0, 1, 2])))
    return method.double()


def test_vid_the_density_is_gaussian():
    target, mean, variance = vid_maps(0, 2, 3, 2, 2), vid_maps(1, 2, 3, 2, 2), vid_maps(2, 3).exp()
    normal = torch.distributions.Normal(mean, variance.sqrt()[:, None, None])
    expected = -normal.log_prob(target) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(
        gaussian_nll(target, mean, variance), expected.mean(dim=(1, 2, 3)), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("train_variance", [True, False])
def test_vid_at_its_initial_variance_vid_is_a_tenth_of_mse(train_variance):
    """The defect of a variance that no optimizer holds, for all epochs; ours for the first step."""
    method = vid(train_variance=train_variance)
    student, teacher = vid_maps(0, 2, 3, 4, 4), vid_maps(1, 2, 5, 2, 2)
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


def test_vid_refuses_a_variance_below_its_minimum():
    with pytest.raises(ConfigError, match=r"initial_variance must be above min_variance=0.5"):
        VID(initial_variance=0.5, min_variance=0.5)
