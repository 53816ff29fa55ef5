import torch

from kdbench.methods.ickd import ICKD, channel_relations, ickd_loss


def feature(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_matches_the_formula_by_hand():
    student, teacher = feature(0, 2, 3, 4, 4), feature(1, 2, 3, 4, 4)
    expected = []
    for own, theirs in zip(student, teacher, strict=True):
        grams = []
        for maps in (own, theirs):
            gram = torch.stack([torch.stack([(a * b).sum() for b in maps]) for a in maps])
            grams.append(gram / gram.norm(dim=1, keepdim=True))
        expected.append((grams[0] - grams[1]).square().sum() / 3)
    torch.testing.assert_close(ickd_loss(student, teacher), torch.stack(expected))


def test_maps_may_differ_in_size_and_scale():
    maps = feature(0, 2, 3, 4, 4)
    torch.testing.assert_close(channel_relations(maps), channel_relations(5 * maps))
    larger = maps.repeat_interleave(2, dim=2)
    torch.testing.assert_close(ickd_loss(maps, larger), torch.zeros(2).double(), atol=1e-12, rtol=0)
    assert ICKD().taps == ("map",)
