"""ImageNet from shards: the order and the pixels of the folder that they were made of."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from kdbench.data.augmentation.views import epoch_plan
from kdbench.data.base import Split
from kdbench.data.streaming import shards
from kdbench.data.streaming.imagenet import imagenet
from kdbench.data.streaming.streamed import StreamedDataset, images_of
from kdbench.data.streaming.tar import CHUNK
from kdbench.errors import KdbenchError
from kdbench.system import disk
from support.folders import CLASSES, photograph, write_class_folders

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SPLITS = (("train", 24), ("val", 9))
KINDS = ("tar cls", "tar json", "tar below", "parquet")


@pytest.fixture
def folder(tmp_path) -> Path:
    for split, count in SPLITS:
        write_class_folders(tmp_path / "folder" / split, count, (60, 48))
    return tmp_path / "folder"


def load(root: Path, **changed: object) -> StreamedDataset:
    settings = {"image_size": 32, "test_resize": 36, "flip": True, "val_split": 0, **changed}
    settings = {"cache_dir": str(root.parent / "cache"), **settings}
    return imagenet(str(root), mean=MEAN, std=STD, **settings)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def as_tar(paths: list[Path], target: Path, label: str) -> None:
    members = {}
    for path in paths:
        number = CLASSES.index(path.parent.name)
        members[path.name] = path.read_bytes()
        content = str(number) if label == "cls" else json.dumps({"label": number, "x": [1]})
        members[f"{path.stem}.{label}"] = content.encode()
    write_tar(target, members)


def as_parquet(paths: list[Path], target: Path) -> None:
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    labels = [CLASSES.index(path.parent.name) for path in paths]
    kind = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])  # as of Polars
    table = pa.table({"image": pa.array(rows, kind), "label": labels})
    pq.write_table(table, target, row_group_size=5)


def in_shards(folder: Path, kind: str) -> Path:
    """Two shards of train and one of val, their rows shuffled."""
    target = folder.parent / kind.replace(" ", "_")
    (target / "data").mkdir(parents=True)
    for split, count in SPLITS:
        paths = sorted((folder / split).rglob("*.JPEG"))
        order = np.argsort(np.random.Philox(key=1).random_raw(count))
        parts = np.array_split(order, 2 if split == "train" else 1)
        for number, part in enumerate(parts):
            chosen = [paths[row] for row in part]
            if kind == "parquet":
                name = f"{split}-{number:05d}-of-{len(parts):05d}.parquet"
                as_parquet(chosen, target / "data" / name)
            elif kind == "tar below":
                (target / split).mkdir(exist_ok=True)
                as_tar(chosen, target / split / f"{number}.tar", "cls")
            else:
                as_tar(chosen, target / f"set-{split}-{number:04d}.tar", kind.split()[1])
    return target


def base_names(split: Split) -> list[str]:
    return [name.rpartition("/")[2] for name in split.images.source.names]


@pytest.mark.parametrize("kind", KINDS)
def test_shards_have_the_order_and_the_pixels_of_the_folder(folder, kind):
    root = in_shards(folder, kind)
    data, reference = load(root), load(folder)
    for split in ("train", "test"):
        ours, theirs = (getattr(one, split) for one in (data, reference))
        assert torch.equal(ours.labels, theirs.labels)
        names = [
            [name.rpartition("/")[2] for name in s.images.source.names] for s in (ours, theirs)
        ]
        assert names[0] == names[1]
        assert torch.equal(ours.images[torch.arange(len(names[0]))], theirs.images[:])
    plan = epoch_plan(24, data.views, seed=5, epoch=2)
    whole = list(images_of(reference, torch.device("cpu")).epoch(*plan, size=7, first=0))
    for first in (0, 2):
        rest = list(images_of(data, torch.device("cpu")).epoch(*plan, size=7, first=first))
        for (index, images), (expected, pixels) in zip(rest, whole[first:], strict=True):
            assert torch.equal(index, expected)
            assert torch.equal(images, pixels)
    held = [load(place, val_split=6).val for place in (root, folder)]
    assert base_names(held[0]) == base_names(held[1])


@pytest.mark.parametrize("kind", ["tar cls", "parquet"])
def test_an_index_is_made_once_and_again_where_a_shard_changed(folder, kind, monkeypatch, capsys):
    root = in_shards(folder, kind)
    first = load(root)
    made = []
    for name in ("index_tar", "pack"):
        build = getattr(shards, name)
        monkeypatch.setattr(
            shards, name, lambda path, *rest, build=build: made.append(path) or build(path, *rest)
        )
    assert load(root).fingerprint == first.fingerprint
    assert made == []
    changed = sorted(root.rglob("*train*"))[0]
    os.utime(changed, (1, 1))
    assert load(root).fingerprint == first.fingerprint
    assert made == [changed]
    for path in (root.parent / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    made.clear()
    assert torch.equal(load(root).train.images[:], first.train.images[:])
    assert len(made) == 3
    said = capsys.readouterr().out
    assert ("copying the images of 2 Parquet files" in said) == (kind == "parquet")


def test_the_hub_s_names_are_those_of_the_folder(folder):
    names = ["n02_10_n01440764.JPEG", "n02_1_n01440764.JPEG", "n02_2_n01440764.JPEG"]
    index = shards.Index(names, np.zeros(3, int), np.arange(3), np.ones(3, int))
    listing = shards.join("train", [Path("a")], [index])
    below = [name.rpartition("/")[2] for name in listing.source.names]
    assert below == sorted(["n02_1.JPEG", "n02_10.JPEG", "n02_2.JPEG"])
    assert listing.source.offset.tolist() == [1, 0, 2]


SPOILT = {
    "empty": "is no readable tar file (empty file): fetch it again",
    "no images": "has no images: fetch it again or remove it",
    "truncated": "is no readable tar file (unexpected end of data)",
    "no end": "is no readable tar file (it ends without an end mark)",
    "damaged": "is no readable tar file (its header at byte ",
    "compressed": "is no readable tar file (",
    "no class": "n01_0.JPEG has no class: it needs n01_0.cls with a number, or n01_0.json with one",
    "odd class": "n01_0.cls holds no class number",
    "large class": "n01_0.cls is too large to hold a class",
    "twice": "two images of the name n01_0",
    "two classes": "n01_0 has two classes",
    "not in val": "different classes: 3 must be in both",
    "both kinds": "has both tar and parquet shards: move one kind elsewhere",
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_shards_that_do_not_fit_are_named(folder, spoil):
    root = in_shards(folder, "tar cls")
    shard = root / "set-train-0000.tar"
    content, picture = shard.read_bytes(), (folder / "train/n01/n01_0.JPEG").read_bytes()
    match spoil:
        case "empty":
            shard.write_bytes(b"")
        case "no images":
            write_tar(shard, {"readme.txt": b"x"})
        case "truncated":
            shard.write_bytes(content[: len(content) // 2 + 100])
        case "no end":
            with tarfile.open(shard) as tar:
                at = tar.getmembers()[6].offset
            shard.write_bytes(content[:at])
        case "damaged":
            with tarfile.open(shard) as tar:
                at = tar.getmembers()[5].offset
            shard.write_bytes(content[:at] + bytes(512) + content[at + 512 :])
        case "compressed":
            with tarfile.open(shard, "w:gz") as tar:
                tar.add(folder / "train" / "n01" / "n01_0.JPEG", "n01_0.JPEG")
        case "no class":
            write_tar(shard, {"n01_0.JPEG": picture})
        case "odd class":
            write_tar(shard, {"n01_0.JPEG": picture, "n01_0.cls": b"tench"})
        case "large class":
            write_tar(shard, {"n01_0.JPEG": picture, "n01_0.cls": b"0" * (CHUNK + 1)})
        case "twice":
            write_tar(shard, {"n01_0.JPEG": picture, "n01_0.png": picture, "n01_0.cls": b"0"})
        case "two classes":
            labels = {"n01_0.cls": b"0", "n01_0.json": b'{"label": 1}'}
            write_tar(shard, {"n01_0.JPEG": picture, **labels})
        case "not in val":
            write_tar(shard, {"n01_0.JPEG": picture, "n01_0.cls": b"3"})
        case "both kinds":
            for split in ("train", "val"):
                (root / f"{split}.parquet").write_bytes(b"")
    with pytest.raises(KdbenchError) as caught:
        load(root)
    assert SPOILT[spoil] in str(caught.value)
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_parquet_shard_that_does_not_fit_leaves_no_copy(folder, monkeypatch):
    root = in_shards(folder, "parquet")
    shard = root / "data" / "train-00001-of-00002.parquet"
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 1000)
    with pytest.raises(KdbenchError, match=r"MB: name another folder with dataset\.cache_dir=DIR"):
        load(root)
    monkeypatch.undo()
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(KdbenchError, match=r"00001-of-00002\.parquet is no readable parquet"):
        load(root)
    copies = [path.name for path in (root.parent / "cache").glob("train-*.pack*")]
    assert len(copies) == 1  # of the first shard, which is not copied again
    shard.unlink()
    with pytest.raises(KdbenchError, match="has 1 files of train, their names say 2"):
        load(root)


@pytest.mark.parametrize(
    ("image", "line"),
    [
        (None, "has no images: fetch it again or remove it"),
        ({"bytes": None, "path": "n01_0.JPEG"}, "parquet row 0 has no image bytes: only files"),
    ],
)
def test_a_parquet_shard_without_an_image_is_named(folder, image, line):
    root = in_shards(folder, "parquet")
    shard = root / "data" / "train-00001-of-00002.parquet"
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [] if image is None else [image]
    table = pa.table(
        {"image": pa.array(rows, kind), "label": pa.array([0] * len(rows), pa.int64())}
    )
    pq.write_table(table, shard)
    with pytest.raises(KdbenchError, match=line):
        load(root)


def test_a_shard_that_is_cut_off_later_stops_the_run(folder):
    root = in_shards(folder, "tar cls")
    data = load(root, on_corrupt="replace")
    shard = root / "set-train-0000.tar"
    os.truncate(shard, 5000)
    with pytest.raises(KdbenchError, match="was cut off after its index was made: fetch it again"):
        images_of(data, torch.device("cpu")).crop(torch.arange(24), torch.arange(24))


def test_unusual_images_are_what_pillow_and_so_image_folder_make_of_them(folder):
    """CMYK as Adobe stores it, a PNG called JPEG, an orientation that is ignored, an alpha."""
    classes = folder / "train" / "n01"
    plain = photograph(0, 60, 48)
    plain.convert("CMYK").save(classes / "a_cmyk.JPEG", quality=98)
    plain.save(classes / "a_png.JPEG", "PNG")
    plain.convert("RGBA").save(classes / "a_alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to be seen
    plain.save(classes / "a_turned.JPEG", exif=exif, quality=98)
    source = load(folder).train.images.source
    rows = {name.rpartition("/")[2]: row for row, name in enumerate(source.names)}
    expected = np.asarray(plain).astype(int)
    for name in ("a_cmyk.JPEG", "a_png.JPEG", "a_alpha.png", "a_turned.JPEG"):
        found = np.asarray(source.read(rows[name])).astype(int)
        assert found.shape == expected.shape  # not turned
        assert abs(found - expected).mean() < 16, name  # an inverted CMYK is off by a hundred


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_an_index_that_would_run_code_is_made_anew(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    root = in_shards(folder, "tar cls")
    first = load(root)
    for path in (root.parent / "cache").glob("*.npz"):
        with np.load(path) as file:
            kept = dict(file)
        np.savez(path, **{**kept, "labels": np.array([RunsCode()] * 12, dtype=object)})
    assert load(root).fingerprint == first.fingerprint
    assert not Path("executed").exists()
