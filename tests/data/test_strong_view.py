"""The second view: every operation against Pillow, its draws, and a run of a two-view method."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from safetensors.torch import load_file
from torch import Tensor

import kdbench.training.member
from kdbench.data.augmentation.randaugment import (
    CUTOUT_COLOUR,
    FRACTIONS,
    OPERATIONS,
    RANGES,
    SLOTS,
    Draws,
    draws_from,
    randaugment,
)
from kdbench.data.augmentation.strong import StrongView, check_views, stack_views, strong_plan
from kdbench.data.augmentation.views import TrainImages, Views, epoch_plan, epoch_words, normalise
from kdbench.errors import ConfigError

NO_BOX = torch.tensor([0, 0, -1, -1])
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
CPU = torch.device("cpu")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pictures(count: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """Noise, noise of few levels, a ramp and one even grey, in turn."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, height, width)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    images[1::4] = images[1::4] // 4 + 60
    images[2::4] = (torch.arange(height * width).view(height, width) % 200).to(torch.uint8)
    images[3::4] = 77
    return images


def to_pillow(image: Tensor) -> Image.Image:
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])


def pillow(name: str, image: Image.Image, value: float) -> Image.Image:
    width, height = image.size
    enhance = {"brightness", "color", "contrast", "sharpness"}
    affine = {
        "shear_x": (1, value, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, value, 1, 0),
        "translate_x": (1, 0, value * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, value * height),
    }
    if name in enhance:
        return getattr(ImageEnhance, name.capitalize())(image).enhance(value)
    if name in affine:
        return image.transform(image.size, Image.Transform.AFFINE, affine[name])
    if name == "rotate":
        return image.rotate(value)
    if name == "posterize":
        return ImageOps.posterize(image, int(value))
    if name == "solarize":
        return ImageOps.solarize(image, value)
    return image if name == "identity" else getattr(ImageOps, name)(image)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32), (3, 20, 24)], ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_pillow_s(name, device, shape):
    """To the bit; only where a compiler fuses Pillow's float32 blend may a level differ by one."""
    images = pictures(24, *shape)
    low, high = RANGES[name]
    value = torch.linspace(low, high, 26, dtype=torch.float64)[1:-1]
    op = torch.full((24, 1), OPERATIONS.index(name))
    draws = Draws(op, value[:, None], NO_BOX.expand(24, 4))
    found = randaugment(images.to(device), Draws(*(part.to(device) for part in draws))).cpu()
    expected = torch.stack(
        [
            torch.from_numpy(np.array(pillow(name, to_pillow(image), value[i].item())))
            for i, image in enumerate(images)
        ]
    )
    expected = expected.permute(0, 3, 1, 2) if shape[0] == 3 else expected[:, None]
    difference = (found.int() - expected.int()).abs()
    blended = name in ("brightness", "color", "contrast", "sharpness")
    assert difference.max() <= (1 if blended else 0)
    assert (difference == 0).double().mean() > 0.99
    assert name == "identity" or (name, shape[0]) == ("color", 1) or not torch.equal(found, images)


def test_slots_follow_each_other_and_the_box_comes_last():
    images = pictures(8)
    rng = np.random.default_rng(0)
    op, fractions = rng.integers(0, len(OPERATIONS), (SLOTS, 8)), rng.random((FRACTIONS, 8))
    draws = draws_from(op, fractions, 32, 32)
    for i, found in enumerate(randaugment(images, draws)):
        picture = to_pillow(images[i])
        for slot in range(SLOTS):
            name = OPERATIONS[op[slot, i]]
            (low, high), fraction = RANGES[name], fractions[slot, i]
            picture = pillow(name, picture, low + (high - low) * fraction)
        # the release: a side up to half the width, a centre by numpy.random.uniform(32)
        side, column, row = fractions[SLOTS:, i]
        side, column, row = 0.5 * side * 32, 32 - 31 * column, 32 - 31 * row
        x, y = (int(max(0, centre - side / 2)) for centre in (column, row))
        corners = (x, y, min(32, x + side), min(32, y + side))
        ImageDraw.Draw(picture).rectangle(corners, CUTOUT_COLOUR)
        expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        assert (found.int() - expected.int()).abs().max() <= 1


def test_the_first_words_of_an_epoch_stay_what_they_are():
    """The weak view and the order of a two-view run are those of every other run."""
    words = epoch_words(10, 8, seed=5, epoch=3)
    assert np.array_equal(words[:2], epoch_words(2, 8, 5, 3))
    order, view = epoch_plan(8, Views(4, True), 5, 3)
    assert order.tolist() == np.argsort(words[0], kind="stable").tolist()
    assert view.tolist() == (words[1] % np.uint64(162)).tolist()


def test_a_strong_plan_is_pinned():
    """A change of these numbers is a change of every two-view result."""
    view, draws = strong_plan(4, 162, 32, 32, seed=5, epoch=3)
    assert view.tolist() == [131, 39, 62, 137]
    assert [[OPERATIONS[i] for i in row] for row in draws.op] == [
        ["translate_y", "shear_y"],
        ["identity", "translate_x"],
        ["equalize", "contrast"],
        ["shear_x", "equalize"],
    ]
    assert draws.value[0].tolist() == pytest.approx([-0.06646512451364256, -0.20768634389655372])
    assert draws.box.tolist() == [
        [9, 18, 16, 25],
        [0, 19, 15, 32],
        [0, 8, 15, 23],
        [6, 31, 7, 32],
    ]


def test_a_strong_plan_draws_everything_evenly():
    view, draws = strong_plan(20_000, 162, 32, 32, seed=0, epoch=1)
    _, weak = epoch_plan(20_000, Views(4, True), 0, 1)
    assert (view == weak).double().mean() < 0.02, "a crop of its own"
    assert view.bincount(minlength=162).min() > 70  # 123 are expected
    for slot in draws.op.unbind(1):
        counts = slot.bincount(minlength=14)
        assert counts.min() > 1250  # 1429 are expected, with a standard deviation of 36
    low, high = torch.tensor(list(RANGES.values()), dtype=torch.float64)[draws.op].unbind(-1)
    fraction = (draws.value - low) / (high - low)
    assert ((fraction >= 0) & (fraction < 1)).all()
    torch.testing.assert_close(fraction.mean(0), torch.full((2,), 0.5).double(), atol=0.01, rtol=0)
    sides = draws.box[:, 2] - draws.box[:, 0] + 1
    assert (draws.box[:, :2] >= 0).all()
    assert (sides.min(), sides.max()) == (1, 16)
    other, _ = strong_plan(20_000, 162, 32, 32, seed=0, epoch=2)
    assert not torch.equal(view, other)


@pytest.mark.parametrize("device", DEVICES)
def test_the_view_of_an_image_does_not_depend_on_its_batch_or_device(device):
    images = pictures(12)
    whole = StrongView(TrainImages(images, Views(4, True), MEAN, STD, CPU), 1, 2)
    other = TrainImages(images, Views(4, True), MEAN, STD, torch.device(device))
    expected = whole.batch(torch.arange(12))
    part = StrongView(other, 1, 2).batch(torch.tensor([7, 3], device=device)).cpu()
    assert torch.equal(part, expected[[7, 3]])


def test_a_strong_view_is_the_crop_then_randaugment_then_the_normalisation():
    train = TrainImages(pictures(12), Views(4, True), MEAN, STD, CPU)
    view, draws = strong_plan(12, 162, 32, 32, seed=1, epoch=2)
    index = torch.tensor([5, 0])
    images = randaugment(train.crop(index, view[index]), Draws(*(part[index] for part in draws)))
    assert torch.equal(StrongView(train, 1, 2).batch(index), normalise(images, MEAN, STD))


def test_a_strong_batch_reads_nothing_back():
    """A meta tensor has no values: whatever would wait for the device fails on it."""
    train = TrainImages(pictures(9), Views(1, True), MEAN, STD, torch.device("meta"))
    index = torch.zeros(4, dtype=torch.int64, device="meta")
    assert StrongView(train, 0, 1).batch(index).shape == (4, 3, 32, 32)


def test_stacked_views_keep_their_memory_format():
    views = [torch.rand(4, 3, 8, 8) for _ in range(2)]
    for layout in (torch.contiguous_format, torch.channels_last):
        stacked = stack_views(views, layout)
        assert torch.equal(stacked, torch.stack(views))
        assert all(view.is_contiguous(memory_format=layout) for view in stacked)


def test_a_third_view_is_refused():
    check_views(2)
    with pytest.raises(ConfigError, match="wants 3 views of each image, but there are 2"):
        check_views(3)


RUN = [
    "dataset=digits",
    "dataset.val_split=1200",  # 237 images are left to train on
    "schedule.epochs=1",
    "schedule.milestones=[]",
    "schedule.batch_size=100",  # 3 steps
    "student=resnet8",
    "runtime=cpu",
    "runtime.threads=1",
]


def test_a_two_view_run_resumes_exactly_and_sees_the_weak_view_of_every_run(command, monkeypatch):
    assert command("train", *RUN, "runs_dir=teacher").code == 0
    (teacher,) = Path("teacher").glob("digits-*")
    mlkd = [
        *RUN,
        "method=mlkd",
        "teacher=resnet8",
        f"teacher.resnet8.checkpoint={teacher}",
        "teacher.resnet8.allow_chance=true",
    ]
    original, seen = kdbench.training.member.train_step, []

    def watched(student, method, teachers, optimizer, batch, generator, losses_of):
        seen.append(batch)
        if len(seen) == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return original(student, method, teachers, optimizer, batch, generator, losses_of)

    monkeypatch.setattr(kdbench.training.member, "train_step", watched)
    stop_at = 0
    assert command("train", *mlkd, "runs_dir=whole").code == 0
    stop_at = len(seen) + 2
    assert command("train", *mlkd, "runs_dir=parts").code == 130
    assert command("train", *mlkd, "runs_dir=parts").code == 0
    whole, parts = seen[:3], seen[3:]
    assert [tuple(batch.images.shape) for batch in whole] == [
        (2, count, 3, 32, 32) for count in (100, 100, 37)
    ]
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole, parts, strict=True))
    first, second = (
        load_file(next(Path(where).glob("digits-*")) / "student.safetensors")
        for where in ("whole", "parts")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert command("train", *RUN, "runs_dir=alone").code == 0
    for alone, batch in zip(seen[6:], whole, strict=True):
        assert torch.equal(alone.images, batch.images[0])
        assert not torch.equal(batch.images[0], batch.images[1])
