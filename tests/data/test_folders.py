"""Folders as people have them: subfolders, what systems leave behind, Kaggle's, a tar a class."""

import io
import os
import shutil
from pathlib import Path
from struct import pack
from zlib import compress, crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from kdbench.data import class_folders
from kdbench.data.class_folders import SOLUTION
from kdbench.data.memory import torchvision_sets
from kdbench.errors import KdbenchError
from support.folders import (
    FOLDERS,
    SCALES,
    flatten,
    load,
    photograph,
    truncate,
    write_class_folders,
    write_tar,
)

JUNK = [
    "._n01_0.JPEG",
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    "__MACOSX/._x.JPEG",
    "@eaDir/a.jpg",
]
JUNK += [".ipynb_checkpoints/n01_0-checkpoint.JPEG", "#recycle/b.png", ".trashed-1-c.jpg"]


@pytest.fixture
def folder(tmp_path) -> Path:
    for split, count in (("train", 24), ("val", 9)):
        write_class_folders(tmp_path / "set" / split, count, (60, 48))
    return tmp_path / "set"


def fill_with_junk(folder: Path) -> int:
    """Every kind of it between the classes and inside one; as many as are passed over."""
    for place in (
        folder / "train",
        folder / "train" / "n01",
        folder / "val",
        folder / "val" / "n03",
    ):
        for name in JUNK:
            path = place / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"no image")
    return 4 * len(JUNK)


@pytest.mark.parametrize("kind", FOLDERS)
def test_subfolders_of_a_class_count_in_torchvision_s_order(folder, kind, capsys):
    images = sorted((folder / "train" / "n02").iterdir())
    for path, inner in zip(images, ("b", "b-c", "b/c", "b/c", "a", "x.JPEG"), strict=False):
        (folder / "train" / "n02" / inner).mkdir(parents=True, exist_ok=True)
        path.rename(folder / "train" / "n02" / inner / path.name)
    (folder / "train" / "n02" / "notes.txt").write_text("x")
    photograph(0, 8, 8).save(folder / "train" / "stray.png")
    data = load(kind, folder)
    reference = ImageFolder(folder / "train")
    assert len(reference) == 24
    assert data.train.labels.tolist() == reference.targets
    if kind == "imagenet":
        source = data.train.images.source
        assert [source.where(row) for row in range(24)] == [path for path, _ in reference.samples]
    said = capsys.readouterr().out
    assert f"{folder}: passed over 2: " in said
    assert "images outside the classes: 1 (train/stray.png)" in said
    assert "not called as an image: 1 (train/n02/notes.txt)" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("kind", FOLDERS)
def test_what_systems_leave_behind_is_passed_over_and_counted(folder, kind, capsys):
    clean = load(kind, folder)
    assert capsys.readouterr().out == ""
    count = fill_with_junk(folder)
    data = load(kind, folder)
    assert data.fingerprint == clean.fingerprint
    said = capsys.readouterr().out
    assert f"passed over {count}: hidden or of the system: {count} (" in said
    assert said.count("\n") == 1


def test_junk_in_tar_and_parquet_shards_is_passed_over(folder, capsys):
    picture = (folder / "val" / "n01" / "n01_0.JPEG").read_bytes()
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for split in ("train", "val"):
        write_tar(
            folder.parent / "tar" / f"{split}-0.tar",
            {"./a.jpg": picture, "./a.cls": b"0", "._a.jpg": b"x", "__MACOSX/a.jpg": b"x"},
        )
        rows = [{"bytes": b"x", "path": "d/._a.jpg"}, {"bytes": picture, "path": "d/a.jpg"}]
        table = pa.table({"image": pa.array(rows, kind), "label": [1, 0]})
        (folder.parent / "parquet").mkdir(exist_ok=True)
        pq.write_table(table, folder.parent / "parquet" / f"{split}.parquet")
        (folder.parent / "parquet" / f"._{split}.parquet").write_bytes(b"x")
        (folder.parent / "tar" / f"._{split}-0.tar").write_bytes(b"x")
    assert load("imagenet", folder.parent / "tar").train.labels.tolist() == [0]
    assert (
        "passed over 4: hidden or of the system: 4 (train-0.tar/._a.jpg, train-0.tar/__MACOSX"
        in (capsys.readouterr().out)
    )
    for name in ("imagenet", "parquet"):
        data = load(name, folder.parent / "parquet")
        assert (data.train.labels.tolist(), data.num_classes) == ([0], 1)
        said = capsys.readouterr().out
        assert "hidden or of the system: 2 (train.parquet row 0: ._a.jpg, val.parquet row 0" in said


def test_a_name_that_is_no_text_and_a_folder_in_itself(folder, capsys):
    odd = os.fsencode(folder / "train" / "n01") + b"/\xff"
    shutil.copy(folder / "train" / "n01" / "n01_0.JPEG", odd + b".JPEG")
    Path(os.fsdecode(odd)).write_bytes(b"")
    for kind in FOLDERS:
        assert len(load(kind, folder).fingerprint) == 64
        assert "(train/n01/\\udcff)" in capsys.readouterr().out
    loop = folder / "train" / "n01" / "loop.jpg"
    loop.symlink_to(loop)
    for kind in FOLDERS:
        with pytest.raises(KdbenchError, match=r"cannot read .*loop\.jpg \(.*: let it be read"):
            load(kind, folder)
    loop.unlink()
    (folder / "train" / "n01" / "again").symlink_to(folder / "train")
    for kind in FOLDERS:
        with pytest.raises(KdbenchError, match=r"is a link to a folder that holds it: remove the"):
            load(kind, folder)


def test_tiny_imagenet_sorted_with_what_it_was_sorted_from(folder, capsys):
    clean = load("tiny_imagenet", folder)
    (folder / "val" / "images").mkdir()
    (folder / "val" / "images" / ".DS_Store").write_bytes(b"x")
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01\t0\t0\t63\t63\n")
    (folder / "train" / "n01" / "n01_boxes.txt").write_text("n01_0.JPEG\t0\t0\t63\t63\n")
    data = load("tiny_imagenet", folder)
    assert len(data.test.labels) == 9
    assert data.fingerprint == clean.fingerprint
    assert "not called as an image: 1 (val/val_annotations.txt)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "root"),
    [
        ("cifar-100-python", ""),
        ("cifar-100-python", "cifar-100-python"),
        ("cifar-100-python/cifar-100-python", ""),
        ("cifar-100-python/cifar-100-python", "cifar-100-python"),
        ("cifar-100-python/cifar-100-python", "cifar-100-python/cifar-100-python"),
        ("link/cifar-100-python", "link"),
        ("link to files", "cifar-100-python"),
    ],
)
def test_cifar_where_torchvision_opens_it(cifar100_root, tmp_path, monkeypatch, place, root):
    files = cifar100_root / "cifar-100-python"
    if place == "link to files":
        (tmp_path / "elsewhere").symlink_to(files)
        (tmp_path / "cifar-100-python").symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / place).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / place).symlink_to(files)
    opened = []

    class Opened(torchvision_sets.CIFAR100):
        def __init__(self, root: Path, train: bool, download: bool) -> None:
            opened.append(root / self.base_folder / "train")
            raise OSError("enough")

    monkeypatch.setattr(torchvision_sets, "CIFAR100", Opened)
    with pytest.raises(KdbenchError, match="enough"):
        torchvision_sets.cifar100(str(tmp_path / root), False, pad=4, flip=True, **SCALES)
    assert opened[0].samefile(files / "train")


@pytest.mark.parametrize(
    ("where", "root"),
    [
        ("kaggle", "kaggle"),
        ("kaggle", "kaggle/ILSVRC"),
        ("kaggle/ILSVRC/Data/CLS-LOC", "kaggle/ILSVRC/Data/CLS-LOC"),
        ("kaggle/ILSVRC/Data/CLS-LOC/val", "kaggle/ILSVRC/Data"),
    ],
)
def test_imagenet_as_kaggle_gives_it(folder, tmp_path, where, root):
    clean = load("imagenet", folder)
    solution = flatten(folder)
    inner = tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC"
    inner.parent.mkdir(parents=True)
    folder.rename(inner)
    with pytest.raises(KdbenchError, match=r"val has no class folders: .*LOC_val_solution\.csv"):
        load("imagenet", tmp_path / root)
    (tmp_path / where / SOLUTION).write_text(solution)
    data = load("imagenet", tmp_path / root)
    assert data.fingerprint == clean.fingerprint
    assert data.test.labels.tolist() == clean.test.labels.tolist()
    found = data.test.images
    assert [found.source.where(row) for row in range(3)] == [
        str(inner / "val" / name) for name in ("n01_0.JPEG", "n01_3.JPEG", "n01_6.JPEG")
    ]
    assert len(found[:]) == 9


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda text: text.replace("n02_1,", "n02_99,"), "differ, in n02_1 first: copy both again"),
        (lambda text: text.rpartition("n03_8")[0], "differ, in n03_8 first: copy both again"),
        (lambda text: text.replace("ImageId", "id"), "is not Kaggle's (rows of ImageId,Pred"),
        (lambda text: text.replace("n02 1 2 3 4", "", 1).replace("n02 1 2 3 4 ", ""), "is not Kag"),
        (lambda text: text + "n03_8,n01 1 2 3 4\n", "is not Kaggle's"),
        (
            lambda text: text.replace("n02 1", "n07 1"),
            "different classes: n02, n07 must be in both",
        ),
        (lambda text: text + '\x00\xff"', "is not Kaggle's"),
    ],
)
def test_a_solution_that_does_not_fit_is_named(folder, change, line):
    (folder / SOLUTION).write_text(change(flatten(folder)), encoding="latin-1")
    with pytest.raises(KdbenchError) as caught:
        load("imagenet", folder)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_images_of_one_name_in_kaggle_s_val_are_refused(folder):
    (folder / SOLUTION).write_text(flatten(folder))
    (folder / "val" / "n02_1.png").write_bytes(b"x")
    (folder / "val" / "read.me").write_bytes(b"x")
    with pytest.raises(KdbenchError, match=r"has two images n02_1: remove one$"):
        load("imagenet", folder)


def test_a_solution_without_an_end_is_not_read(folder, monkeypatch):
    (folder / SOLUTION).write_text(flatten(folder))
    monkeypatch.setattr(class_folders, "LARGEST", 10)
    with pytest.raises(KdbenchError, match="is not Kaggle's"):
        load("imagenet", folder)


def into_tars(split: Path, inner: bool = False) -> None:
    """A tar in place of each class folder."""
    for place in list(split.iterdir()):
        members = {path.name: path.read_bytes() for path in sorted(place.iterdir(), reverse=True)}
        members = {f"{place.name}/{name}" if inner else name: c for name, c in members.items()}
        write_tar(split / f"{place.name}.tar", {**members, "list.txt": b"x"})
        shutil.rmtree(place)


@pytest.mark.parametrize("val", ["folders", "flat", "tars"])
def test_one_tar_a_class_is_the_set_of_its_folders(folder, val, capsys):
    clean = load("imagenet", folder)
    pixels = clean.train.images[:]
    into_tars(folder / "train", inner=val == "tars")
    if val == "flat":
        (folder / SOLUTION).write_text(flatten(folder))
    if val == "tars":
        into_tars(folder / "val")
    (folder / "train" / ".DS_Store").write_bytes(b"x")
    for _ in range(2):  # by the index that was kept
        data = load("imagenet", folder)
        assert data.fingerprint == clean.fingerprint
        assert data.train.labels.tolist() == clean.train.labels.tolist()
        assert torch.equal(data.train.images[:], pixels)
        assert "hidden or of the system: 1 (train/.DS_Store)" in capsys.readouterr().out
    shard = folder / "train" / "n02.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(KdbenchError, match=r"n02\.tar is no readable tar file"):
        load("imagenet", folder)


def test_archives_that_cannot_be_read_as_they_lie_are_named(folder):
    tars = folder.parent / "tars"
    tars.mkdir()
    write_tar(tars / "ILSVRC2012_img_train.tar", {"n01.tar": b"x" * 9, "n02.tar": b"x"})
    write_tar(tars / "ILSVRC2012_img_val.tar", {"a.jpg": b"x", "a.cls": b"0"})
    with pytest.raises(KdbenchError, match=r"no images, but 2 tar files \(n01\.tar \.\.\.\)"):
        load("imagenet", tars)
    into_tars(folder / "train")
    with pytest.raises(KdbenchError, match=r"train has no class folders.* 3 files \(n01\.tar"):
        load("image_folder", folder)
    for number, path in enumerate(sorted((folder / "train").iterdir())):
        path.rename(folder / "train" / f"{number}.tar")  # shards, whose classes are missing
    with pytest.raises(KdbenchError, match=r"train has no class folders.* 3 files \(0\.tar, "):
        load("imagenet", folder)


def test_shards_whose_classes_come_after_all_images_are_shards(folder):
    for split in ("train", "val"):
        pictures = {path.name: path.read_bytes() for path in (folder / split / "n01").iterdir()}
        labels = {f"{Path(name).stem}.cls": b"1" for name in pictures}
        shutil.rmtree(folder / split)
        write_tar(folder / split / "any.tar", {**pictures, **labels})
    assert load("imagenet", folder).test.labels.tolist() == [1, 1, 1]


def sixteen(kind: str) -> bytes:
    """A picture of 16 bits a channel whose upper 8 are 100."""
    deep, content = np.full((12, 12), 100 * 256 + 99, np.uint16), io.BytesIO()
    match kind:
        case "grey.png" | "grey.tif":
            Image.fromarray(deep).save(content, kind.rpartition(".")[2].replace("tif", "tiff"))
        case "grey.pgm":
            return b"P5 12 12 65535\n" + deep.astype(">u2").tobytes()
        case "colours.png":  # which Pillow does not write
            pixels = b"".join(b"\0" + row.astype(">u2").repeat(3).tobytes() for row in deep)
            parts = [(b"IHDR", pack(">IIBBBBB", 12, 12, 16, 2, 0, 0, 0)), (b"IEND", b"")]
            parts.insert(1, (b"IDAT", compress(pixels)))
            chunks = [pack(">I", len(d)) + t + d + pack(">I", crc32(t + d)) for t, d in parts]
            return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    return content.getvalue()


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm", "colours.png"])
@pytest.mark.parametrize("kind", FOLDERS)
def test_images_of_16_bits_are_scaled_to_8_and_that_is_said_once(folder, kind, name, capsys):
    for place in ("train/n01/a", "train/n01/a_", "val/n02/a"):
        (folder / f"{place}{name}").write_bytes(sixteen(name))
    data = load(kind, folder)
    order = sorted(path.name for path in (folder / "train" / "n01").iterdir())
    assert (data.train.images[torch.tensor([order.index(f"a{name}")])] == 100).all()
    assert len(data.test.images[:]) == 10
    said = capsys.readouterr().out
    assert said.count("16 bits a channel: it is scaled to 8, as are all others") == 1


UNREADABLE = ("truncated", "empty", "a page", "a png cut off", "a strip", "fractions")


@pytest.mark.parametrize("val_split", [0, 24 - 3])
@pytest.mark.parametrize("spoil", UNREADABLE)
def test_an_unreadable_image_to_score_on_is_found_before_the_first_step(folder, spoil, val_split):
    split = "train" if val_split else "val"
    broken = [folder / split / "n02" / f"n02_{number}.JPEG" for number in (1, 4)]
    for path in (folder / "train" / "n02").iterdir() if val_split else broken:
        spoil_image(path, spoil)
    with pytest.raises(KdbenchError) as caught:
        load("imagenet", folder, val_split=val_split, on_corrupt="replace")
    assert f"{folder}/{split}/n02/n02_1" in str(caught.value)
    assert ".JPEG is no readable image (" in str(caught.value)
    count = 2 if not val_split else 7
    assert f" ({count} images to score on cannot be read; also {folder}" in str(caught.value)
    assert "\n" not in str(caught.value)


def spoil_image(path: Path, how: str) -> None:
    match how:
        case "truncated":
            truncate(path)
        case "empty":
            path.write_bytes(b"")
        case "a page":
            path.write_bytes(b"<!DOCTYPE html>")
        case "a png cut off":
            photograph(0, 60, 48).save(path, "PNG")
            truncate(path)
        case "a strip":
            Image.new("L", (1, 60_000)).save(path, "JPEG")
        case "fractions":
            Image.new("F", (9, 9)).save(path, "TIFF")


def test_a_set_that_is_whole_is_looked_at_without_decoding_it(folder, monkeypatch):
    """Also with zeros after the end, and a PNG among them, which is decoded."""
    path = folder / "val" / "n01" / "n01_0.JPEG"
    path.write_bytes(path.read_bytes() + bytes(20))
    photograph(0, 60, 48).save(folder / "val" / "n01" / "n01_3.JPEG", "PNG")
    decoded = []

    def counting(image: Image.Image, *_: int) -> None:
        decoded.append(image)

    monkeypatch.setattr("kdbench.data.streaming.imagenet.squared", counting)
    load("imagenet", folder)
    assert len(decoded) == 1
