"""RandAugment by timm's strings, and images that an epoch has several times."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from kdbench.data.augmentation.timm_randaugment import EpochRandAugment, policy_of
from kdbench.data.augmentation.views import TrainImages, Views, epoch_plan
from kdbench.errors import ConfigError
from kdbench.seeds import derive

TEXT, MEAN = "rand-m9-mstd0.5-inc1", (0.5071, 0.4867, 0.4408)


def crops(count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(small, (32, 32), mode="bilinear")
    return (255 * smooth).to(torch.uint8)


def test_an_image_is_timm_s_for_its_seed_and_depends_on_its_place_alone():
    ours = EpochRandAugment(policy_of(TEXT, MEAN, 32), seed=3, epoch=2)
    before = random.getstate(), np.random.get_state()[1].copy()
    found = ours(crops(), torch.arange(10, 16))
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])
    theirs = rand_augment_transform(TEXT, {"translate_const": 14, "img_mean": (129, 124, 112)})
    for row, place in enumerate(range(10, 16)):
        seed = derive(derive(3, "rand_augment", 2), place)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        expected = np.asarray(theirs(Image.fromarray(crops()[row].permute(1, 2, 0).numpy())))
        assert np.array_equal(found[row].permute(1, 2, 0).numpy(), expected)
    assert torch.equal(ours(crops()[2:4], torch.arange(12, 14)), found[2:4])
    assert not torch.equal(found, crops())


def test_a_grey_image_is_refused():
    with pytest.raises(ConfigError, match="is for images of 3 channels: set it to null"):
        policy_of(TEXT, (0.5,), 32)


def test_an_image_that_comes_again_is_another_view():
    images = TrainImages(crops(8), Views(4, True), MEAN, (0.25,) * 3, torch.device("cpu"))
    order, view = epoch_plan(8, images.views, 1, 1)
    twice = order.repeat_interleave(2)[:8]
    batches = list(images.epoch(twice, view, 4, 0, by_place=True))
    index = torch.cat([index for index, _ in batches])
    assert torch.equal(index, twice)
    assert sorted(set(index.tolist())) == sorted(set(order[:4].tolist()))
    seen = torch.cat([pixels for _, pixels in batches])
    assert not torch.equal(seen[0], seen[1])
    torch.testing.assert_close(seen[3], images.batch(twice[3:4], view[3:4])[0])
