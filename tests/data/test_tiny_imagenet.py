"""Tiny-ImageNet in both layouts, rotated as torchvision does."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from kdbench.data.augmentation.rotation import Rotations
from kdbench.data.augmentation.views import TrainImages, epoch_plan, normalise
from kdbench.data.base import Dataset
from kdbench.data.memory.tiny_imagenet import tiny_imagenet
from kdbench.errors import ConfigError, KdbenchError
from support.folders import CLASSES, real, truncate, write_class_folders

MEAN, STD = [0.4802, 0.4481, 0.3975], [0.2302, 0.2265, 0.2262]
CPU = torch.device("cpu")


def load(folder: Path, **changed: object) -> Dataset:
    settings = {"on_corrupt": "error", "rotation": 20.0, "flip": True, "val_split": 0, **changed}
    return tiny_imagenet(str(folder), mean=MEAN, std=STD, **settings)


@pytest.fixture
def folder(tmp_path) -> Path:
    """As it is handed out: val in one folder, with annotations."""
    root = tmp_path / "tiny-imagenet-200"
    write_class_folders(root / "train", 24, (64, 64), inner="images")
    write_class_folders(root / "scratch", 9, (64, 64))
    lines = []
    (root / "val" / "images").mkdir(parents=True)
    for number, path in enumerate(sorted((root / "scratch").rglob("*.JPEG"), reverse=True)):
        path.rename(root / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{path.parent.name}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("".join(f"{name}\n" for name in reversed(CLASSES)))
    return root


def test_both_layouts_are_the_same_set(folder):
    data = load(folder.parent)
    assert (data.name, data.num_classes) == ("tiny_imagenet", 3)
    assert data.train.images.shape == (24, 3, 64, 64)
    assert data.train.labels.bincount().tolist() == [8, 8, 8]
    first = sorted((folder / "train" / "n01" / "images").iterdir())[0]
    assert torch.equal(data.train.images[0], TF.pil_to_tensor(Image.open(first).convert("RGB")))
    images = folder / "val" / "images"
    lines = (folder / "val" / "val_annotations.txt").read_text().splitlines()
    for name, wnid in (line.split("\t")[:2] for line in lines):
        (folder / "val" / wnid).mkdir(exist_ok=True)
        (images / name).rename(folder / "val" / wnid / name)
    images.rmdir()
    again = load(folder)
    assert again.test.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert again.fingerprint == data.fingerprint


def test_rotations_are_torchvision_s_to_the_bit(folder):
    data = load(folder, rotation=180.0)
    _, view = epoch_plan(24, data.views, seed=1, epoch=1)
    train = TrainImages(data.train.images, data.views, MEAN, STD, CPU)
    found = train.crop(torch.arange(24), view)
    angles, flips = data.views.decode(view)
    for row in range(24):
        picture = TF.rotate(TF.to_pil_image(data.train.images[row]), angles[row].item())
        picture = TF.hflip(picture) if flips[row] else picture
        assert torch.equal(found[row], TF.pil_to_tensor(picture))
    assert flips.unique().tolist() == [0, 1]
    assert torch.equal(train.batch(torch.arange(24), view), normalise(found, MEAN, STD))


def test_angles_are_uniform_and_flips_even():
    views = Rotations(20.0, True)
    angles, flips = views.decode(epoch_plan(20_000, views, seed=2, epoch=1)[1])
    assert angles.abs().max().item() == pytest.approx(20, abs=0.01)
    assert torch.histc(angles, 10, -20, 20) == pytest.approx(2000, abs=5 * 2000**0.5)
    assert flips.double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert not Rotations(20.0, False).decode(torch.arange(9))[1].any()
    with pytest.raises(ConfigError, match=r"dataset\.rotation must be 0 to 180 degrees"):
        Rotations(-1.0, True)


def test_an_image_that_cannot_be_read_is_named_or_left_out(folder, capsys):
    truncate(folder / "train" / "n02" / "images" / "n02_4.JPEG")
    with pytest.raises(KdbenchError, match=r"n02_4\.JPEG is no readable image .*on_corrupt=skip$"):
        load(folder)
    data = load(folder, on_corrupt="skip")
    assert data.train.labels.bincount().tolist() == [8, 7, 8]
    said = capsys.readouterr().out
    assert "1 images cannot be read and are left out: n02_4.JPEG" in said


def test_layouts_that_do_not_fit_are_named(folder, tmp_path):
    with pytest.raises(KdbenchError, match=r"^tiny_imagenet is not in .*: set dataset\.root=DIR"):
        load(tmp_path / "elsewhere")
    annotations = folder / "val" / "val_annotations.txt"
    text = annotations.read_text()
    annotations.write_text(text.replace("\tn02\t", "\tn01\t"))
    with pytest.raises(KdbenchError, match=r"different classes: n02 must be in both$"):
        load(folder)
    annotations.write_text(text.splitlines(keepends=True)[0])
    with pytest.raises(KdbenchError, match=r"differ, in val_1\.JPEG first: copy both again"):
        load(folder)
    annotations.unlink()
    with pytest.raises(KdbenchError, match=r"images is not sorted into classes, and .*annotations"):
        load(folder)
    (folder / "wnids.txt").write_text("n01\nn02\nn05\n")
    with pytest.raises(KdbenchError, match=r"wnids\.txt and .*train differ, in n03 first"):
        load(folder)


@pytest.mark.long
def test_the_real_one_trains(command):
    root = real("tiny-imagenet-mini")
    short = ["schedule.epochs=2", "schedule.milestones=[1]", "schedule.batch_size=64"]
    arguments = ["dataset=tiny_imagenet", f"dataset.root={root}", "student=resnet8"]
    result = command("train", *arguments, *short, "schedule.lr=0.05", "runtime=cpu")
    assert result.code == 0, result.err
    (path,) = Path("runs").glob("tiny_imagenet-none-resnet8-ce-s0-*/record.json")
    record = json.loads(path.read_text())
    assert (record["data"]["train"], record["data"]["test"]) == (1000, 1000)
    assert record["top1_last"] > 8  # chance is 5
