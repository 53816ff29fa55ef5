"""Views, plans, and every data set from its own kind of files."""

import hashlib
import json
import pickle
import shutil
import struct
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet
import pytest
import torch
import yaml
from PIL import Image
from torchvision.datasets import CIFAR10
from torchvision.transforms import functional as T

from kdbench.assembly.make import make
from kdbench.data.augmentation.views import TrainImages, Views, epoch_plan, normalise
from kdbench.data.base import Dataset, Split, assemble, hold_out
from kdbench.data.memory.digits import digits
from kdbench.errors import KdbenchError
from kdbench.networks.resnet import resnet8
from kdbench.records.identity import identify
from kdbench.schema.check import check_node
from support.commands import ROOT, SHARED, compose

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
CPU = torch.device("cpu")


def load(name: str, **settings: object) -> Dataset:
    """The data set of conf/dataset/NAME.yaml with some settings changed."""
    node: dict[str, object] = {}
    while True:
        found = yaml.safe_load((ROOT / "conf/dataset" / f"{name}.yaml").read_text())
        (name, *_) = found.pop("defaults", [None])
        node = {**found, **node}
        if name is None:
            break
    return make(check_node("dataset", {**node, **settings}))


def noise(count: int, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def torchvision_view(image: torch.Tensor, row: int, column: int, flip: bool) -> torch.Tensor:
    """RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor, Normalize with fixed choices."""
    picture = T.crop(T.pad(T.to_pil_image(image), 4), row, column, 32, 32)
    picture = T.hflip(picture) if flip else picture
    return T.normalize(T.to_tensor(picture), MEAN, STD)


def test_every_view_is_torchvision_s_to_the_bit():
    views, images = Views(pad=4, flip=True), noise(2)
    assert views.count == 162
    index = torch.arange(2).repeat_interleave(162)
    view = torch.arange(162).repeat(2)
    batch = TrainImages(images, views, MEAN, STD, CPU).batch(index, view)
    seen = set()
    for i in range(324):
        row, column, flip = (int(part[i]) for part in views.decode(view))
        seen.add((row, column, flip))
        expected = torchvision_view(images[index[i]], row, column, bool(flip))
        assert torch.equal(batch[i], expected), (row, column, flip)
    assert seen == {(r, c, f) for r in range(9) for c in range(9) for f in range(2)}


def test_evaluation_is_torchvision_s_to_the_bit():
    images = noise(3)
    expected = [T.normalize(T.to_tensor(T.to_pil_image(image)), MEAN, STD) for image in images]
    assert torch.equal(normalise(images, MEAN, STD), torch.stack(expected))


def test_without_augmentation_there_is_one_view():
    images, views = noise(4, size=20), Views(pad=0, flip=False)
    assert views.count == 1
    batch = TrainImages(images, views, MEAN, STD, CPU).batch(
        torch.tensor([2, 0]), torch.zeros(2).long()
    )
    assert torch.equal(batch, normalise(images[[2, 0]], MEAN, STD))


def test_a_plan_is_pinned():
    """A change of these numbers is a change of every result: it needs a new RESULTS_VERSION."""
    order, view = epoch_plan(8, Views(4, True), seed=5, epoch=3)
    assert order.tolist() == [5, 7, 6, 1, 4, 2, 0, 3]
    assert view.tolist() == [131, 39, 62, 137, 143, 157, 118, 11]


def test_a_plan_follows_from_seed_and_epoch():
    views = Views(4, True)
    plans = {(s, e): epoch_plan(5000, views, s, e) for s in (0, 1) for e in (1, 2)}
    again = epoch_plan(5000, views, 0, 1)
    assert all(torch.equal(a, b) for a, b in zip(plans[0, 1], again, strict=True))
    for order, view in plans.values():
        assert torch.equal(order.sort().values, torch.arange(5000))
        counts = view.bincount(minlength=162)
        assert len(counts) == 162
        # 30.9 a view are expected, with a standard deviation of 5.5
        assert counts.min() >= 8
        assert counts.max() <= 60
    for part in (0, 1):
        assert len({tuple(plan[part].tolist()) for plan in plans.values()}) == 4


def test_held_out_images_are_balanced_and_fixed():
    labels = torch.arange(100) % 5
    split = Split(torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1), labels)
    train, val = hold_out(split, 15, num_classes=5)
    assert val.labels.bincount().tolist() == [3] * 5
    both = torch.cat([train.images, val.images]).flatten()
    assert torch.equal(both.sort().values, split.images.flatten())
    assert torch.equal(hold_out(split, 15, 5)[1].images, val.images)
    assert hold_out(split, 0, 5) == (split, None)


def test_digits():
    data = load("digits")
    assert data.train.images.shape == (1437, 3, 32, 32)
    assert data.test.images.shape == (360, 3, 32, 32)
    assert data.train.images.max() == 255
    assert set(data.test.labels.bincount().tolist()) <= {35, 36, 37}
    pixels = data.train.images.float() / 255
    assert pixels.mean().item() == pytest.approx(data.mean[0], abs=1e-4)
    assert pixels.std().item() == pytest.approx(data.std[0], abs=1e-4)
    blocks = data.train.images.unflatten(2, (8, 4)).unflatten(4, (8, 4))
    assert (blocks == blocks[:, :, :, :1, :, :1]).all(), "pixels are repeated"


def test_a_fingerprint_sees_one_pixel_one_label_and_the_held_out():
    data = digits([0.3] * 3, [0.4] * 3, 4, False, 0)
    images, labels = data.train.images.clone(), data.train.labels.clone()
    images[7, 0, 3, 3] += 1
    labels[9] += 1
    changed = [Split(images, data.train.labels), Split(data.train.images, labels)]
    prints = [Dataset(**{**vars(data), "train": train}).fingerprint for train in changed]
    prints += [data.fingerprint, digits([0.3] * 3, [0.4] * 3, 4, False, 20).fingerprint]
    assert len(set(prints)) == 4
    assert data.fingerprint == digits([0.1] * 3, [0.9] * 3, 2, False, 0).fingerprint


def test_other_data_under_the_same_settings_are_a_run_of_another_name():
    config = compose()
    names = {identify(config, "digits", sha256, {}).hash for sha256 in ("a", "b", "b")}
    assert len(names) == 2


def test_grey_images_are_trained_on_as_they_are():
    split = Split(noise(4)[:, :1].contiguous(), torch.arange(4) % 2)
    scales = {"mean": [0.5], "std": [0.25], "pad": 4, "flip": True, "val_split": 0}
    data = assemble("grey", 2, split, split, **scales)
    train = TrainImages(data.train.images, data.views, data.mean, data.std, torch.device("cpu"))
    views = train.batch(torch.arange(4), torch.arange(4))
    assert views.shape == (4, 1, 32, 32)
    assert resnet8(num_classes=2, in_channels=1)(views).logits.shape == (4, 2)


def test_cifar100_is_the_official_one(cifar100_root):
    data = load("cifar100", root=str(cifar100_root))
    assert data.train.images.shape == (50_000, 3, 32, 32)
    assert data.test.labels.bincount().tolist() == [100] * 100
    named = load("cifar100", root=str(cifar100_root / "cifar-100-python"))
    assert named.fingerprint == data.fingerprint


def test_an_altered_cifar100_file_is_named(cifar100_root, tmp_path):
    folder = tmp_path / "cifar-100-python"
    shutil.copytree(cifar100_root / "cifar-100-python", folder)
    content = bytearray((folder / "train").read_bytes())
    content[-20] ^= 1  # one bit, same size
    (folder / "train").unlink()
    (folder / "train").write_bytes(content)
    with pytest.raises(KdbenchError, match=r"train is truncated or altered \(md5"):
        load("cifar100", root=str(tmp_path))


def test_cifar10_reads_all_its_parts(tmp_path, monkeypatch):
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    pixels = noise(60).reshape(60, -1).numpy()

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    parts = []
    for number in range(6):
        rows = slice(10 * number, 10 * number + 10)
        name = f"part_{number}"
        parts.append([name, write(name, {"data": pixels[rows], "labels": list(range(10))})])
    names = [str(number) for number in range(10)]
    meta = {
        "filename": "names",
        "key": "label_names",
        "md5": write("names", {"label_names": names}),
    }
    monkeypatch.setattr(CIFAR10, "train_list", parts[:5])
    monkeypatch.setattr(CIFAR10, "test_list", parts[5:])
    monkeypatch.setattr(CIFAR10, "meta", meta)
    data = load("cifar10", root=str(tmp_path))
    assert torch.equal(data.train.images, noise(60)[:50])
    assert torch.equal(data.test.images, noise(60)[50:])
    assert data.test.labels.tolist() == list(range(10))


@pytest.fixture
def fashion(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    pixels = noise(20, size=28)[:, 0].numpy()
    for name, rows in (("train", pixels[:12]), ("t10k", pixels[12:])):
        images = struct.pack(">4B3I", 0, 0, 8, 3, len(rows), 28, 28) + rows.tobytes()
        labels = struct.pack(">4BI", 0, 0, 8, 1, len(rows)) + bytes(
            i % 10 for i in range(len(rows))
        )
        (folder / f"{name}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(labels)
    return tmp_path


def test_fashion_mnist_gets_a_border_and_three_channels(fashion):
    data = load("fashion_mnist", root=str(fashion))
    assert data.train.images.shape == (12, 3, 32, 32)
    inner = data.train.images[:, :, 2:30, 2:30]
    assert torch.equal(inner, noise(20, 28)[:12, :1].expand(-1, 3, -1, -1))
    assert data.train.images.sum() == inner.sum(), "the border is black"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes in all sorts of images, all but the content equal to `noise`."""
    for split in ("train", "val"):
        for label, name in enumerate(("ant", "bee")):
            place = tmp_path / "insects" / split / name
            place.mkdir(parents=True)
            for number in range(3):
                picture = T.to_pil_image(noise(6, size=24)[3 * label + number])
                picture.save(place / f"{number}.png")
    return tmp_path / "insects"


def test_image_folder(folder):
    data = load("image_folder", root=str(folder), image_size=24, pad=4)
    assert (data.name, data.num_classes) == ("insects", 2)
    assert torch.equal(data.train.images, noise(6, size=24))
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_image_folder_makes_rgb_squares_of_anything(folder):
    place = folder / "train" / "ant"
    Image.new("L", (40, 30), 100).save(place / "3.png")
    Image.new("CMYK", (30, 50), (0, 0, 0, 0)).save(place / "4.jpg")
    data = load("image_folder", root=str(folder), image_size=24, pad=4)
    assert data.train.images.shape == (8, 3, 24, 24)
    assert (data.train.images[3] == 100).all()


def test_image_folder_on_real_photographs():
    root = SHARED / "data" / "imagenette-mini"
    if not root.is_dir():
        pytest.skip(f"no photographs in {root}")
    data = load("image_folder", root=str(root), image_size=32, pad=4)
    assert (len(data.train.labels), len(data.test.labels)) == (400, 150)
    assert data.num_classes == 10


def write_parquet(path: Path, images: torch.Tensor, labels: list[object], classes: int) -> None:
    encoded = []
    for image in images:
        picture = path.with_suffix(".png")
        T.to_pil_image(image).save(picture)
        encoded.append({"bytes": picture.read_bytes(), "path": None})
    features = {"label": {"names": [str(i) for i in range(classes)], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = arrow.table({"image": encoded, "label": labels}).replace_schema_metadata(metadata)
    arrow.parquet.write_table(table, path)


@pytest.fixture
def hub(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data/train-00000-of-00002.parquet", noise(4)[:2], [0, 1], 3)
    write_parquet(tmp_path / "data/train-00001-of-00002.parquet", noise(4)[2:], [1, 0], 3)
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", noise(2), [1, 0], 3)
    return tmp_path


def test_parquet_reads_every_shard(hub):
    data = load("parquet", root=str(hub))
    assert torch.equal(data.train.images, noise(4))
    assert data.train.labels.tolist() == [0, 1, 1, 0]
    assert data.num_classes == 3, "named in the metadata, though the third has no image"
