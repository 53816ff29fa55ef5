import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods.semckd import RelationEncoder, SemCKD, attended_distance, attention_of


def feature(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_distance_matches_the_formula_by_hand():
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


def test_attention_is_a_softmax_over_the_teacher_s_layers():
    queries, keys = [feature(0, 4, 3)], [feature(seed, 4, 3) for seed in (1, 2, 3)]
    found = attention_of(queries, keys)
    scores = torch.stack([(queries[0] * key).sum(dim=1) for key in keys], dim=1)
    torch.testing.assert_close(found[:, 0], torch.softmax(scores, dim=1))


def test_a_short_batch_is_one_with_black_images_less():
    """Products with an image whose map is 0 are 0, as with one that is not there."""
    encoder, maps = RelationEncoder(8, 2), feature(0, 5, 3, 4, 4)
    padded = torch.cat([maps, torch.zeros(3, 3, 4, 4)])
    torch.testing.assert_close(encoder(maps), encoder(padded)[:5])


def test_says_what_to_set_for_a_larger_batch():
    method = SemCKD(batch_size=8)
    method.build([3], [3])
    with pytest.raises(ConfigError, match=r"of 9: set it to schedule\.batch_size"):
        method.match([feature(0, 9, 3, 4, 4)], [feature(1, 9, 3, 4, 4)])
    with pytest.raises(ConfigError, match=r"method.batch_size=2 must be 4 \(factor\) or more"):
        SemCKD(batch_size=2)
