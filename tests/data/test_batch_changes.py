"""Mixup, CutMix, random erasing and soft labels against timm's own."""

import numpy as np
import pytest
import timm.data.mixup
import torch
from scipy.stats import ks_2samp
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing

from kdbench.data.augmentation.batches import BatchChanges, ChangedBatches, fractions, smoothed
from kdbench.data.augmentation.erasing import FRACTIONS, draw_boxes, erased
from kdbench.data.augmentation.mixing import (
    FRACTIONS as MIXING,
)
from kdbench.data.augmentation.mixing import (
    Mixing,
    draw_mixes,
    larger_part,
    mixed_images,
    mixed_targets,
    of_batch,
)

DRAWS = 10_000
SIDE = 32
BOTH = Mixing(mixup=0.8, cutmix=1.0, prob=0.9, switch_prob=0.3, mode="elem")


def draws(mixing: Mixing, count: int = DRAWS):
    return draw_mixes(mixing, fractions(MIXING, count, 1, 1), SIDE, SIDE)


def timm_draws(mixing: Mixing) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares in the label, boxes and which are CutMix, of timm's Mixup."""
    np.random.seed(0)
    theirs = Mixup(mixing.mixup, mixing.cutmix, None, mixing.prob, mixing.switch_prob, "elem")
    share, cut = theirs._params_per_elem(DRAWS)
    boxes = np.zeros((DRAWS, 4))
    for i in np.flatnonzero(cut & (share < 1)):
        boxes[i], share[i] = timm.data.mixup.cutmix_bbox_and_lam((3, SIDE, SIDE), share[i])
    return share, boxes, cut & (share < 1)


@pytest.mark.parametrize(
    "mixing", [BOTH, BOTH._replace(cutmix=0.0, mixup=0.2), BOTH._replace(mixup=0.0)]
)
def test_draws_have_the_distribution_of_timm_s(mixing):
    ours, (share, boxes, cut) = draws(mixing), timm_draws(mixing)
    assert ours.cut.float().mean().item() == pytest.approx(cut.mean(), abs=0.02)
    assert (ours.share == 1).float().mean().item() == pytest.approx((share == 1).mean(), abs=0.02)
    for kind in (True, False):
        mine, theirs = ours.share[ours.cut == kind].numpy(), share[cut == kind]
        if len(theirs):
            assert ks_2samp(mine, theirs).pvalue > 1e-3
    for edge in range(4):
        mine, theirs = ours.box[ours.cut, edge].numpy(), boxes[cut, edge]
        assert not len(theirs) or ks_2samp(mine, theirs).pvalue > 1e-3


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_pixels_and_labels_are_timm_s_for_the_same_draws(kind, mode, monkeypatch):
    mixing = Mixing(0.8 * (kind == "mixup"), 1.0 * (kind == "cutmix"), 1.0, 0.5, mode)
    images, labels = torch.randn(6, 3, SIDE, SIDE), torch.arange(6)
    mix = of_batch(draws(mixing, 50), torch.arange(20, 26), mode)
    ours = mixed_images(images, mix)
    targets = mixed_targets(smoothed(labels, 10, 0.1), mix)
    theirs = Mixup(mixing.mixup, mixing.cutmix, mode=mode, label_smoothing=0.1, num_classes=10)
    count = {"batch": 1, "pair": 3, "elem": 6}[mode]
    share, cut = mix.share[:count].numpy(), mix.cut[:count].numpy()
    boxes = iter(mix.box[:count].tolist())
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (float(share[0]), bool(cut[0])))
    monkeypatch.setattr(theirs, "_params_per_elem", lambda size: (share.copy(), cut))
    monkeypatch.setattr(timm.data.mixup, "rand_bbox", lambda *_, **__: next(boxes))
    expected, expected_targets = theirs(images.clone(), labels)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(targets, expected_targets)
    assert torch.equal(larger_part(labels, mix), targets.argmax(1))


def test_smoothed_labels_are_timm_s():
    labels = torch.tensor([2, 0])
    torch.testing.assert_close(smoothed(labels, 4, 0.1), mixup_target(labels, 4, 1.0, 0.1))


def test_rectangles_have_the_distribution_of_timm_s():
    boxes = draw_boxes(0.4, fractions(FRACTIONS, DRAWS, 1, 1), SIDE, SIDE)
    theirs, found = RandomErasing(0.4, mode="const", device="cpu"), []
    torch.manual_seed(0)
    for _ in range(DRAWS // 4):
        gone = theirs(torch.ones(1, SIDE, SIDE))[0] == 0
        rows, columns = gone.any(1).nonzero(), gone.any(0).nonzero()
        edges = [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1] if len(rows) else []
        found.append([int(edge) for edge in edges] or [0] * 4)
    expected = np.array(found)
    drawn = (boxes[:, 1] > 0).float().mean().item()
    assert drawn == pytest.approx((expected[:, 1] > 0).mean(), abs=0.04)
    ours, expected = boxes[boxes[:, 1] > 0].numpy(), expected[expected[:, 1] > 0]
    for edge in range(4):
        assert ks_2samp(ours[:, edge], expected[:, edge]).pvalue > 1e-3
    area = [(box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]) for box in (ours, expected)]
    assert ks_2samp(*area).pvalue > 1e-3


def test_a_rectangle_is_noise_and_the_rest_stays():
    images = torch.zeros(2, 3, 8, 8)
    boxes = torch.tensor([[1, 4, 2, 8], [0, 0, 0, 0]])
    found = erased(images, boxes, torch.Generator().manual_seed(0))
    assert (found[0, :, 1:4, 2:8] != 0).all()
    assert torch.equal(found[1], images[1])
    assert int((found != 0).sum()) == 3 * 3 * 6


def changed(**settings) -> ChangedBatches:
    given = {"mixing": BOTH._replace(mode="batch"), "erasing": 0.5, "label_smoothing": 0.1}
    changes = BatchChanges(**{**given, **settings})
    return ChangedBatches(changes, 40, (8, 8), 10, 3, 2, torch.device("cpu"))


def test_a_batch_is_the_same_whenever_it_is_asked_for():
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8)
    whole, later = changed(), changed()
    whole(images, labels, 0)
    first, second = whole(images, labels, 16), later(images, labels, 16)
    for ours, again in zip(first, second, strict=True):
        assert torch.equal(ours, again)
    other = later(images, labels, 24)
    assert not torch.equal(first.images, other.images)
    torch.testing.assert_close(first.targets.sum(1), torch.ones(8))


def test_smoothing_alone_leaves_images_as_they_are():
    plain = changed(mixing=BOTH._replace(prob=0.0), erasing=0.0)
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    found = plain(images, labels, 0)
    assert found.images is images
    assert found.labels is labels
    assert not plain.changes.images
    assert plain.changes.any
