"""Data sets that would cost memory, start a program or never end: each is one line, or passed."""

import os
import signal
import socket
import warnings
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import EpsImagePlugin, Image

from kdbench.data.arrays import read_arrays
from kdbench.data.class_folders import SOLUTION
from kdbench.data.decoding.decode import decode_into
from kdbench.data.memory.torchvision_sets import cifar100, fashion_mnist
from kdbench.data.scored import has_header
from kdbench.data.streaming import shards, sources
from kdbench.data.streaming.streamed import images_of
from kdbench.errors import KdbenchError
from kdbench.system.files import open_regular
from support.folders import FOLDERS, flatten, load, photograph, write_class_folders, write_tar

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    for split, count in (("train", 9), ("val", 6)):
        write_class_folders(tmp_path / "set" / split, count, (60, 48))
    return tmp_path / "set"


@pytest.fixture
def shard_folder(folder) -> Path:
    """Two tar shards beside the folder."""
    picture = (folder / "val" / "n01" / "n01_0.JPEG").read_bytes()
    for split in ("train", "val"):
        members = {"a.jpg": picture, "a.cls": b"0", "b.jpg": picture, "b.cls": b"1"}
        write_tar(folder.parent / "tar" / f"{split}-0.tar", members)
    return folder.parent / "tar"


@pytest.fixture(autouse=True)
def ends():
    """Whatever hangs fails: a pipe that is opened waits for a writer."""

    def stop(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def error_line(build, *given: object, **settings: object) -> str:
    with pytest.raises(KdbenchError) as caught:
        build(*given, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def decoded(content: bytes, size: int = 8) -> torch.Tensor:
    images = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    decode_into(images, [content], ["x"])
    return images


def encoded(tmp_path: Path, image: Image.Image, kind: str) -> bytes:
    image.save(tmp_path / "encoded", kind)
    return (tmp_path / "encoded").read_bytes()


def test_postscript_called_jpg_starts_no_ghostscript(folder, monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(1))
    for split in ("train", "val"):
        (folder / split / "n01" / "a.jpg").write_bytes(EPS)
    for kind in FOLDERS:
        assert "a.jpg is no readable image (unknown format): " in error_line(load, kind, folder)
    assert started == []


def test_the_formats_that_are_read_are_these(tmp_path):
    picture = photograph(0, 8, 8)
    for kind in ("JPEG", "MPO", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF"):
        assert decoded(encoded(tmp_path, picture, kind)).float().mean() > 1, kind
    for kind in ("TGA", "ICO", "PCX", "SGI", "JPEG2000", "DDS"):
        assert "unknown format" in error_line(decoded, encoded(tmp_path, picture, kind)), kind


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (2, 60_000)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_a_strip_is_refused_before_it_is_scaled_up(folder, tmp_path, monkeypatch, size, kind):
    def never(*_: object) -> None:
        raise AssertionError("it is scaled")

    content = encoded(tmp_path, Image.new("L", size), kind)
    with monkeypatch.context() as patch:
        patch.setattr("torchvision.transforms.functional.resize", never)
        line = error_line(decoded, content, 256)
        assert f"its {size[0]} x {size[1]} pixels are too long a strip to be scaled to" in line
    path = folder / "val" / "n01" / "n01_0.JPEG"
    path.write_bytes(content)
    settings = {"test_resize": 256, "image_size": 224}
    assert "n01_0.JPEG is no readable image (its " in error_line(
        load, "imagenet", folder, **settings
    )
    path.rename(folder / "train" / "n01" / "a.JPEG")  # a crop of it is an image as any other
    photograph(0, 60, 48).save(path)
    crops = images_of(load("imagenet", folder), torch.device("cpu"))
    assert crops.crop(torch.arange(10), torch.arange(10)).shape == (10, 3, 32, 32)


@pytest.mark.parametrize("size", [(60, 6000), (6000, 6000), (1, 200)])
def test_long_and_large_images_that_take_little_are_read(tmp_path, size):
    assert decoded(encoded(tmp_path, Image.new("L", size, 9), "PNG"), 64).eq(9).all()


def test_more_pixels_than_may_be_decoded_are_refused_by_the_header(tmp_path):
    content = encoded(tmp_path, Image.new("1", (10_000, 9_000)), "PNG")
    assert len(content) < 20_000
    assert "x is no readable image (" in error_line(decoded, content)
    with warnings.catch_warnings():  # Pillow only warns; whoever does not turn that into an error
        warnings.simplefilter("ignore")
        line = error_line(decoded, content)
    assert "10000 x 9000 pixels are more than 89,478,485" in line
    whole = encoded(tmp_path, Image.new("L", (16, 16)), "JPEG")
    assert has_header(whole)
    at = whole.index(b"\xff\xc0") + 5  # height and width, which a GPU's decoder would believe
    assert not has_header(whole[:at] + b"\xff\xdc\xff\xdc" + whole[at + 4 :])


def special(path: Path, kind: str) -> None:
    """Something in place of a file that has no end, or waits for one."""
    path.unlink(missing_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as one:
                before = Path.cwd()
                os.chdir(path.parent)  # a socket's name may have a hundred letters
                one.bind(path.name)
                os.chdir(before)
        case "device":
            path.symlink_to("/dev/zero")


SPECIAL = ("pipe", "socket", "device")


@pytest.mark.parametrize("kind", SPECIAL)
def test_no_pipe_socket_or_device_among_images_is_opened(folder, kind):
    special(folder / "train" / "n02" / "no image", kind)  # passed over as any other
    special(folder / "val" / "._x.jpg", kind)
    for name in FOLDERS:
        load(name, folder)
    special(folder / "val" / "n02" / "a.jpg", kind)
    for name in FOLDERS:
        line = error_line(load, name, folder)
        assert "val/n02/a.jpg is a pipe, a socket or a device, and no file: remove it" in line


@pytest.mark.parametrize("kind", SPECIAL)
def test_no_pipe_socket_or_device_among_shards_is_opened(folder, shard_folder, kind):
    parquet = folder.parent / "parquet"
    parquet.mkdir()
    for place, ending in ((shard_folder, "tar"), (parquet, "parquet")):
        for split in ("train-0", "val-0"):
            special(place / f"{split}.{ending}", kind)
    below = folder.parent / "below"
    for split in ("train", "val"):
        (below / split).mkdir(parents=True)
        special(below / split / "n01.tar", kind)
    sets = [("imagenet", place) for place in (shard_folder, parquet, below)]
    for name, place in [*sets, ("parquet", parquet)]:
        assert "is a pipe, a socket or a device" in error_line(load, name, place)


@pytest.mark.parametrize("kind", SPECIAL)
def test_no_pipe_socket_or_device_is_opened_for_names_of_classes(folder, kind):
    special(folder / "wnids.txt", kind)
    load("tiny_imagenet", folder)
    (folder / "val" / "images").mkdir()
    flatten(folder)
    for path in list((folder / "val").glob("*.JPEG")):
        path.rename(folder / "val" / "images" / path.name)
    special(folder / "val" / "val_annotations.txt", kind)
    assert "val_annotations.txt cannot be read" in error_line(load, "tiny_imagenet", folder)
    for path in list((folder / "val" / "images").iterdir()):
        path.rename(folder / "val" / path.name)
    (folder / "val" / "images").rmdir()
    special(folder / SOLUTION, kind)
    assert "val has no class folders" in error_line(load, "imagenet", folder)


@pytest.mark.parametrize("kind", SPECIAL)
def test_no_pipe_socket_or_device_in_the_cache_is_opened(folder, shard_folder, kind):
    cache = folder.parent / "cache"
    data = load("imagenet", shard_folder)
    for path in cache.glob("*.npz"):
        special(path, kind)
    assert load("imagenet", shard_folder).fingerprint == data.fingerprint
    load("imagenet", folder, resized=40)
    (part,) = cache.rglob("part-*")
    special(part, kind)
    assert "is a pipe, a socket or a device" in error_line(load, "imagenet", folder, resized=40)
    special(cache / ".lock", kind)
    assert "is a pipe, a socket or a device" in error_line(load, "imagenet", shard_folder)


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize(
    ("build", "name"),
    [
        (cifar100, "cifar-100-python/train"),
        (cifar100, "cifar-100-python.tar.gz"),
        (fashion_mnist, "FashionMNIST/raw/train-images-idx3-ubyte.gz"),
    ],
)
def test_no_pipe_socket_or_device_is_downloaded_to(tmp_path, kind, download, build, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    special(tmp_path / name, kind)
    settings = {"mean": [0.5] * 3, "std": [0.5] * 3, "pad": 4, "flip": True, "val_split": 0}
    line = error_line(build, str(tmp_path), download, **settings)
    if download or build is cifar100:
        assert f"{name} is a pipe, a socket or a device" in line


def test_a_file_that_a_pipe_replaces_while_it_is_opened_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"x")
    before = (tmp_path / "file").stat()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("kdbench.system.files.os.stat", lambda path: before)
    with pytest.raises(ValueError, match="not a regular file"):
        open_regular(tmp_path / "pipe")


def test_an_image_of_a_gigabyte_is_no_image(folder, monkeypatch):
    monkeypatch.setattr(sources, "LARGEST_FILE", 1000)
    source = load("imagenet", folder).train.images.source
    with pytest.raises(ValueError, match="it has more than"):
        source.encoded(0)


def test_a_lock_that_is_a_link_leaves_the_other_file_alone(shard_folder):
    load("imagenet", shard_folder)
    other = shard_folder.parent / "other"
    other.write_text("mine")
    lock = shard_folder.parent / "cache" / ".lock"
    lock.unlink()
    lock.symlink_to(other)
    assert "cannot write " in error_line(load, "imagenet", shard_folder)
    assert other.read_text() == "mine"


@pytest.mark.parametrize("label", [10**6 * 2, -(2**40), 2**63, 10**30, 10**400])
@pytest.mark.parametrize("ending", ["cls", "json"])
def test_a_class_number_that_no_network_could_have_is_refused(shard_folder, label, ending):
    text = str(label) if ending == "cls" else f'{{"label": {label}}}'
    picture = photograph(0, 8, 8)
    picture.save(shard_folder / "a.png")
    members = {"a.png": (shard_folder / "a.png").read_bytes(), f"a.{ending}": text.encode()}
    for split in ("train", "val"):
        write_tar(shard_folder / f"{split}-0.tar", members)
    line = error_line(load, "imagenet", shard_folder)
    assert "there is no class of the number " in line
    assert len(line) < 300 + len(str(shard_folder))


@pytest.mark.parametrize("label", [2_000_000, 2**63 + 5])
def test_a_class_number_in_parquet_is_bounded_as_well(folder, tmp_path, label):
    picture = {"bytes": (folder / "val/n01/n01_0.JPEG").read_bytes(), "path": None}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    labels = pa.array([0, label], pa.uint64())
    table = pa.table({"image": pa.array([picture] * 2, kind), "label": labels})
    (tmp_path / "hub").mkdir()
    for split in ("train", "val"):
        pq.write_table(table, tmp_path / "hub" / f"{split}.parquet")
    for name in ("imagenet", "parquet"):
        line = error_line(load, name, tmp_path / "hub")
        assert f"row 1 has the label {label}, no number of a class: mend it" in line


def compressed(path: Path, kept: dict[str, np.ndarray]) -> None:
    np.savez_compressed(path, **{**kept, "names": np.zeros(50_000_000, np.uint8)})


def promising(path: Path, kept: dict[str, np.ndarray]) -> None:
    """A header that says 2^40 numbers where there are two."""
    np.savez(path, **kept)
    content = path.read_bytes()
    path.write_bytes(
        content.replace(b"'shape': (2,), }" + b" " * 12, b"'shape': (1099511627776,), }")
    )


SPOILT = {
    "compressed": compressed,
    "promising": promising,
    "beyond": lambda path, kept: np.savez(path, **{**kept, "sizes": kept["sizes"] + 10**15}),
    "before": lambda path, kept: np.savez(path, **{**kept, "offsets": -kept["offsets"]}),
    "overflowing": lambda path, kept: np.savez(
        path, **{**kept, "offsets": kept["offsets"] | 2**62}
    ),
    "uneven": lambda path, kept: np.savez(path, **{**kept, "sizes": kept["sizes"][:1]}),
    "fractions": lambda path, kept: np.savez(path, **{**kept, "labels": kept["labels"] / 2}),
    "labels": lambda path, kept: np.savez(path, **{**kept, "labels": kept["labels"] + 10**12}),
    "another version": lambda path, kept: path.write_bytes(
        path.read_bytes().replace(b"NUMPY\x01", b"NUMPY\x02")
    ),
    "nothing": lambda path, kept: np.savez(path, facts=kept["facts"]),
}


@pytest.mark.parametrize("how", SPOILT)
def test_an_index_that_asks_for_memory_is_made_anew(shard_folder, monkeypatch, how):
    data = load("imagenet", shard_folder)
    (path,) = (shard_folder.parent / "cache").glob("train-0*.npz")
    keys = ("facts", "names", "labels", "offsets", "sizes")
    kept = read_arrays(path, keys)
    with np.load(path) as file:
        assert all(np.array_equal(file[key], kept[key]) for key in keys)
    SPOILT[how](path, kept)
    made, build = [], shards.index_tar
    monkeypatch.setattr(
        shards, "index_tar", lambda path, *rest: made.append(path.name) or build(path, *rest)
    )
    again = load("imagenet", shard_folder)
    assert made == ["train-0.tar"]
    assert again.fingerprint == data.fingerprint


def test_an_array_in_another_version_of_the_format_is_refused(tmp_path):
    """In a sound archive: its header has another length, so it is not read as the first one's."""
    path = tmp_path / "index.npz"
    with ZipFile(path, "w") as archive, archive.open("sizes.npy", "w") as member:
        np.lib.format.write_array(member, np.arange(3), (2, 0))
    with np.load(path) as file:
        assert file["sizes"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="an array of another version"):
        read_arrays(path, ["sizes"])


def test_a_cache_of_pixels_that_promises_more_than_it_holds_is_named(folder):
    load("imagenet", folder, resized=40)
    (part,) = (folder.parent / "cache").rglob("part-*")
    content = part.read_bytes()
    for odd in (b"", content[:-1], np.int64(2**40).tobytes() + content[8:]):
        part.write_bytes(odd)
        assert "is damaged: remove it, and it is made anew" in error_line(
            load, "imagenet", folder, resized=40
        )
