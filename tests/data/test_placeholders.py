"""Images that cannot be read: named and refused, or named, counted and replaced, always alike."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdbench.data.augmentation.views import epoch_plan
from kdbench.data.streaming.imagenet import imagenet
from kdbench.data.streaming.sources import FolderSource
from kdbench.data.streaming.streamed import StreamedDataset, images_of
from kdbench.errors import KdbenchError
from kdbench.records.identity import recorded, without_later
from kdbench.schema.node import Node
from support.commands import compose
from support.folders import truncate, write_class_folders

CPU = torch.device("cpu")
RUN = ["dataset=imagenet", "dataset.image_size=32", "dataset.test_resize=36", "runtime=cpu"]
SHORT = ["schedule=synthetic", "schedule.epochs=1", "schedule.milestones=[]", "runtime.threads=1"]


@pytest.fixture
def folder(tmp_path) -> Path:
    for split, count in (("train", 30), ("val", 12)):
        write_class_folders(tmp_path / split, count, (60, 48))
    return tmp_path


def load(folder: Path, on_corrupt: str = "replace") -> StreamedDataset:
    scales = {"mean": [0.5] * 3, "std": [0.25] * 3, "flip": True, "val_split": 0}
    return imagenet(str(folder), 32, 36, **scales, on_corrupt=on_corrupt)


def row_of(data: StreamedDataset, name: str) -> int:
    return next(i for i, n in enumerate(data.train.images.source.names) if n.endswith(name))


def test_the_next_of_its_class_stands_in_for_an_image_with_any_number_of_threads(folder, capsys):
    whole = images_of(load(folder), CPU)
    last = folder / "train" / "n02" / "n02_7.JPEG"  # by name: the first of its class comes next
    truncate(last)
    (folder / "train" / "n01" / "n01_0.JPEG").write_bytes(b"")
    (folder / "train" / "n01" / "n01_12.JPEG").write_bytes(b"no picture")
    before = torch.get_num_threads()
    epochs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        data = load(folder)
        images = images_of(data, CPU)
        plan = epoch_plan(30, data.views, seed=5, epoch=1)
        epochs.append(list(images.epoch(*plan, size=8, first=0)))
        assert len(data.replaced) == 3
    torch.set_num_threads(before)
    for (index, ours), (same_index, same) in zip(*epochs, strict=True):
        assert torch.equal(index, same_index)
        assert torch.equal(ours, same)
    pairs = [("n02_7.JPEG", "n02_1.JPEG"), ("n01_0.JPEG", "n01_15.JPEG")]
    view = torch.tensor([2**61 + 12345])
    for broken, stand_in in pairs:
        found = images.crop(torch.tensor([row_of(data, broken)]), view)
        assert torch.equal(found, whole.crop(torch.tensor([row_of(data, stand_in)]), view)), broken
    few = data.train.images.narrow(0, 0, 10)  # of n01; what is timed before a sweep
    assert len(few[:]) == 10
    assert len(few.placeholders.broken) == 2
    said = capsys.readouterr().out
    assert said.count("n02_7.JPEG cannot be read (") == 2  # once in each of two runs
    assert said.count("n01_0.JPEG cannot be read (unknown format): the next image of its") == 3


def test_what_cannot_be_replaced_stops_the_run(folder, monkeypatch):
    order, view = torch.arange(30), torch.arange(30)

    def line(data: StreamedDataset) -> str:
        with pytest.raises(KdbenchError) as caught:
            list(images_of(data, CPU).epoch(order, view, size=8, first=0))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (folder / "train" / "n02" / "n02_4.JPEG").unlink()
    (folder / "train" / "n02" / "n02_4.JPEG").symlink_to(folder / "elsewhere")
    data = load_before(folder)
    assert "n02_4.JPEG is no readable image ([Errno 2] No such file" in line(data)
    for path in (folder / "train" / "n02").iterdir():
        path.unlink()
        path.write_bytes(b"")
    assert "no image of the class of " in line(load(folder))
    (folder / "val" / "n01" / "n01_0.JPEG").write_bytes(b"")
    with pytest.raises(KdbenchError, match=r"val/n01/n01_0\.JPEG is no readable image"):
        load(folder).test.images[:]


def load_before(folder: Path) -> StreamedDataset:
    """Listed while the linked file was there."""
    target = folder / "elsewhere"
    target.write_bytes(b"")
    data = load(folder)
    target.unlink()
    return data


@pytest.mark.parametrize("error", [RuntimeError("torn\nup"), MemoryError("no memory")])
def test_whatever_a_decoding_thread_raises_is_one_line_and_hangs_nothing(
    folder, monkeypatch, error
):
    data = load(folder, "error")
    original = FolderSource.read

    def fails_once(source: FolderSource, row: int):
        if row == 17:
            raise error
        return original(source, row)

    monkeypatch.setattr(FolderSource, "read", fails_once)
    epoch = images_of(data, CPU).epoch(torch.arange(30), torch.arange(30), size=8, first=0)
    assert len(next(epoch)[0]) == len(next(epoch)[0]) == 8  # batches before it are whole
    with pytest.raises(KdbenchError) as caught:
        next(epoch)
    assert str(caught.value).endswith("restore or remove it")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert len(images_of(data, CPU).crop(torch.arange(30), torch.arange(30))) == 30


def test_a_run_counts_them_and_has_a_name_of_its_own(folder, command):
    truncate(folder / "train" / "n02" / "n02_4.JPEG")
    arguments = [*RUN, *SHORT, f"dataset.root={folder}"]
    assert "n02_4.JPEG is no readable image (" in command("train", *arguments).error_line
    result = command("train", *arguments, "dataset.on_corrupt=replace")
    assert result.code == 0, result.err
    assert "n02_4.JPEG cannot be read (" in result.out
    (record,) = (json.loads(path.read_text()) for path in Path("runs").glob("*/record.json"))
    assert (record["status"], record["data"]["replaced"]) == ("done", 1)


def test_runs_of_before_the_setting_keep_their_names():
    target = "kdbench.data.imagenet.imagenet"
    node = Node(target, {"flip": True, "root": "/a", "cache_dir": "/b"})

    def named(target: str = target, **settings: str) -> dict:
        own = replace(compose(), dataset=replace(node.having(**settings), target=target))
        return without_later(recorded(own).spelt())

    assert named(on_corrupt="error")["dataset"] == {"_target_": target, "flip": True}
    assert named(on_corrupt="replace")["dataset"]["on_corrupt"] == "replace"
    tiny = named("kdbench.data.memory.tiny_imagenet.tiny_imagenet", on_corrupt="error")
    assert tiny["dataset"]["on_corrupt"] == "error"
