"""Training images kept as pixels: torchvision's Resize, made once, and a protocol of its own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from kdbench.data.augmentation.views import epoch_plan
from kdbench.data.streaming import resized
from kdbench.data.streaming.imagenet import imagenet
from kdbench.data.streaming.sources import FolderSource
from kdbench.data.streaming.streamed import StreamedDataset, images_of
from kdbench.errors import ConfigError, KdbenchError
from kdbench.records.protocol import protocol_of
from kdbench.schema.node import Node
from support.folders import photograph, truncate, write_class_folders

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    for split, count in (("train", 21), ("val", 6)):
        write_class_folders(tmp_path / "data" / split, count, (60, 48))
    photograph(5, 30, 20).save(tmp_path / "data" / "train" / "n01" / "small.png")
    monkeypatch.setattr(resized, "PART", 8)
    monkeypatch.setattr(resized, "GROUP", 3)
    return tmp_path / "data"


def load(folder: Path, **changed: object) -> StreamedDataset:
    settings = {"flip": True, "val_split": 0, "resized": 24, **changed}
    where = {"cache_dir": str(folder.parent / "cache")}
    return imagenet(str(folder), 16, 20, mean=[0.5] * 3, std=[0.25] * 3, **settings, **where)


def test_pixels_are_torchvision_s_resize_and_smaller_images_stay(folder):
    data, plain = load(folder, val_split=3), load(folder, val_split=3, resized=None)
    source = data.train.images.source
    for row, name in enumerate(source.names):
        original = Image.open(folder / name).convert("RGB")
        small = name.endswith("small.png")
        expected = original if small else TF.resize(original, [24])
        assert min(expected.size) == (20 if small else 24)
        assert source.read(row).tobytes() == expected.tobytes()
    assert data.fingerprint == plain.fingerprint
    for split in ("test", "val"):  # scored as without the cache
        a, b = (getattr(one, split).images[:] for one in (data, plain))
        assert torch.equal(a, b)


def test_it_is_made_once_and_goes_on_where_it_was_stopped(folder, monkeypatch):
    original, calls = FolderSource.read, []

    def counting(source: FolderSource, row: int) -> Image.Image:
        calls.append(row)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return original(source, row)

    monkeypatch.setattr(FolderSource, "read", counting)
    with pytest.raises(KeyboardInterrupt):
        load(folder)
    left = [path.name for path in (folder.parent / "cache").rglob("*") if path.is_file()]
    assert sorted(left) == [".lock", "part-00000.rgb"]
    calls.clear()
    monkeypatch.setattr(FolderSource, "read", lambda s, row: calls.append(row) or original(s, row))
    data = load(folder)
    assert sorted(calls) == list(range(8, 22))
    calls.clear()
    plan = epoch_plan(22, data.views, seed=5, epoch=1)
    epochs = [
        torch.cat([x for _, x in images_of(one, CPU).epoch(*plan, size=8, first=0)])
        for one in (data, load(folder))
    ]
    assert torch.equal(*epochs)
    assert calls == []


def test_unreadable_images_are_refused_or_replaced(folder):
    truncate(folder / "train" / "n02" / "n02_4.JPEG")
    with pytest.raises(KdbenchError, match=r"n02_4\.JPEG is no readable image"):
        load(folder)
    data = load(folder, on_corrupt="replace")
    images_of(data, CPU).crop(torch.arange(22), torch.arange(22))
    assert len(data.replaced) == 1


def test_sizes_that_only_add_up_are_noticed_at_the_image(folder):
    """The file is as long as its sizes say together, but one of them is negative."""
    load(folder)
    part = min((folder.parent / "cache").rglob("part-*"))
    content = bytearray(part.read_bytes())
    sizes = np.frombuffer(content, np.int64, 16).reshape(8, 2)
    first, second = sizes[:2].prod(axis=1)
    sizes[0, 0] *= -1
    sizes[1] = 1, second + 2 * first
    part.write_bytes(content)
    images = images_of(load(folder), CPU)
    with pytest.raises(KdbenchError, match=r"its copy in dataset\.cache_dir is damaged"):
        images.crop(torch.arange(1), torch.arange(1))


def test_it_is_a_protocol_of_its_own(folder):
    with pytest.raises(ConfigError, match=r"dataset\.resized=15 must be null or from dataset\.im"):
        load(folder, resized=15)
    with pytest.raises(ConfigError, match=r"dataset\.decoder=nvjpeg decodes nothing where datas"):
        load(folder, decoder="nvjpeg")
    schedule = Node("Schedule", {"epochs": 100, "batch_size": 512})
    for size, expected in ((None, ""), (256, "resized256-")):
        dataset = Node("imagenet", {"resized": size}, "imagenet")
        assert protocol_of(dataset, schedule) == f"imagenet-100ep-b512-{expected}last"
