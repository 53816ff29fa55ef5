"""Bad data: one clear line that names what is wrong and how to mend it, and nothing is executed."""

import errno
import hashlib
import json
import os
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10
from torchvision.transforms import functional as TF

from kdbench.data.augmentation.views import TrainImages, Views, normalise
from kdbench.data.base import Split, assemble, hold_out
from kdbench.data.memory import torchvision_sets
from kdbench.data.memory.digits import digits
from kdbench.data.memory.image_folder import image_folder
from kdbench.data.memory.parquet import parquet
from kdbench.data.memory.synthetic import synthetic
from kdbench.errors import ConfigError, KdbenchError

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
COMMON = {"mean": [0.5] * 3, "std": [0.25] * 3, "pad": 1, "flip": True, "val_split": 0}
IMAGES = {"test_split": None, "image_size": 8, "max_gib": 1.0, **COMMON}


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Ten images a file in CIFAR-10's layout; the class's checksums are set to match."""
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    pixels = noise(60, 3072).numpy()
    names = [name for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]]
    for i, name in enumerate(names):
        rows = slice(10 * i, 10 * i + 10)
        content = {"data": pixels[rows], "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    md5 = hashlib.md5
    sums = {path.name: md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[5], sums[names[5]]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    return pixels


def write_fashion_mnist(root: Path) -> torch.Tensor:
    """Twenty training and ten test images as unpacked idx files."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    images = noise(30, 28, 28)
    for part, rows in (("train", slice(20)), ("t10k", slice(20, 30))):
        for kind, values in (
            ("images-idx3", images[rows]),
            ("labels-idx1", torch.arange(30)[rows] % 10),
        ):
            header = bytes((0, 0, 8, values.ndim))
            header += b"".join(size.to_bytes(4, "big") for size in values.shape)
            content = header + values.to(torch.uint8).numpy().tobytes()
            (folder / f"{part}-{kind}-ubyte").write_bytes(content)
    return images


def write_images(root: Path, split: str, modes: dict[str, str], size=(12, 8)) -> None:
    for name, mode in modes.items():
        path = root / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(size[1], size[0], 3).numpy()).convert(mode).save(path)


def write_parquet(path: Path, labels: list[int], names: list[str] | None = None) -> None:
    """PNGs of 8x8 in the Hub's layout, a row a label."""
    rows = []
    for i in range(len(labels)):
        scratch = path.with_suffix(".png")
        Image.fromarray((noise(8, 8, 3) // 2 + i).numpy()).save(scratch)
        rows.append({"bytes": scratch.read_bytes(), "path": None})
        scratch.unlink()
    table = pa.table({"image": rows, "label": labels})
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        written = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": written})
    pq.write_table(table, path, row_group_size=4)


def error_line(kind: type[KdbenchError], build, **settings: object) -> str:
    with pytest.raises(KdbenchError) as caught:
        build(**settings)
    line = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in line
    return line


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"mean": [0.5]}, "dataset.mean must have 3 numbers"),
        ({"std": [0.5] * 4}, "dataset.std must have 3 numbers"),
        ({"std": [0.5, 0.5, 0.0]}, "dataset.std must be above 0 to 1"),
        ({"std": [0.5, 0.5, -0.1]}, "dataset.std must be above 0 to 1"),
        ({"std": [0.5, 0.5, float("nan")]}, "dataset.std must be above 0 to 1"),
        ({"mean": [125.3, 123.0, 113.9]}, "dataset.mean must be from 0 to 1, as pixels are"),
        ({"pad": -1}, "dataset.pad must be 0 or more, not -1"),
        ({"pad": 8}, "dataset.pad must be below 8"),
        ({"val_split": -1}, "dataset.val_split must be 0, or from 3"),
        ({"val_split": 2}, "dataset.val_split must be 0, or from 3"),
        ({"val_split": 30}, "dataset.val_split must be 0, or from 3 (one image a class) to 29"),
        ({"num_classes": 0}, "dataset.num_classes must be 1 or more, not 0"),
        ({"image_size": 6}, "dataset.image_size must be a multiple of 4, not 6"),
        ({"seed": -1}, "dataset.seed must be 0 or more, not -1"),
    ],
)
def test_settings_that_make_no_sense(changed, line):
    settings = {"num_classes": 3, "num_train": 30, "num_test": 9, "image_size": 8, "seed": 0}
    assert line in error_line(ConfigError, synthetic, **{**settings, **COMMON, **changed})


def test_labels_and_splits_that_do_not_fit():
    def built(train: list[int], test: list[int]):
        splits = (Split(noise(len(rows), 3, 4, 4), torch.tensor(rows)) for rows in (train, test))
        return assemble("a", 2, *splits, **COMMON)

    assert "test labels from 0 to 2: they must be 0 to 1" in error_line(
        KdbenchError, built, train=[0, 1], test=[0, 2]
    )
    assert "train labels from -1 to 1" in error_line(KdbenchError, built, train=[1, -1], test=[0])
    assert "a has no test images" in error_line(KdbenchError, built, train=[0, 1], test=[])
    with pytest.raises(ConfigError, match="without training images: the smallest class has 1"):
        hold_out(Split(noise(9, 3, 4, 4), torch.tensor([0] * 8 + [1])), 4, 2)


def cifar100_copy(source: Path, root: Path) -> Path:
    folder = root / "cifar-100-python"
    folder.mkdir()
    for path in (source / "cifar-100-python").iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize(("name", "keep"), [("test", -1), ("test", 0), ("meta", 1000)])
def test_a_truncated_cifar100_file_is_not_called_missing(cifar100_root, tmp_path, name, keep):
    path = cifar100_copy(cifar100_root, tmp_path) / name
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:keep])
    line = error_line(
        KdbenchError, torchvision_sets.cifar100, root=str(tmp_path), download=False, **COMMON
    )
    assert f"{path} is truncated or altered (md5 " in line
    assert re.search(r"\(md5 [0-9a-f]{32}, expected [0-9a-f]{32}\): remove it and add", line)


@pytest.mark.parametrize("name", [None, "meta", "test"])
def test_a_missing_cifar100_file_and_how_to_get_it(cifar100_root, tmp_path, name):
    if name:
        (cifar100_copy(cifar100_root, tmp_path) / name).unlink()
    line = error_line(
        KdbenchError, torchvision_sets.cifar100, root=str(tmp_path), download=False, **COMMON
    )
    assert f"cifar100 is not in {tmp_path}/cifar-100-python (no file {name or 'train'}): " in line
    assert "add dataset.download=true to the command, or set dataset.root=DIR or KDBENCH" in line


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_pickle_that_would_run_code_is_not_run(tmp_path, monkeypatch, name):
    write_cifar10(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / CIFAR10.base_folder / name
    path.write_bytes(pickle.dumps(RunsCode()))
    line = error_line(
        KdbenchError, torchvision_sets.cifar10, root=str(tmp_path), download=False, **COMMON
    )
    assert f"{path} is truncated or altered" in line
    assert not Path("executed").exists()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "stl10"])
def test_a_download_that_fails(tmp_path, monkeypatch, name):
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no route\nto host")

    for module in ("cifar", "mnist", "stl10"):
        place = f"torchvision.datasets.{module}.download_and_extract_archive"
        monkeypatch.setattr(place, refuse)
    line = error_line(
        KdbenchError,
        getattr(torchvision_sets, name),
        root=str(tmp_path),
        download=True,
        **COMMON,
    )
    assert line.startswith("cannot download ")
    assert "no route to host" in line
    assert f"copy its files to {tmp_path}" in line


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("keep", [0, 3, 10, -1, None])
def test_fashion_mnist_truncated_or_missing(tmp_path, name, keep):
    write_fashion_mnist(tmp_path)
    path = tmp_path / "FashionMNIST" / "raw" / name
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:keep])
    for download in (False, True)[: 1 if keep is None else 2]:
        line = error_line(
            KdbenchError,
            torchvision_sets.fashion_mnist,
            root=str(tmp_path),
            download=download,
            **COMMON,
        )
        if keep is None:
            assert f"(no file {name}): add dataset.download=true" in line
        else:
            assert f"{path} is truncated or altered (" in line


def test_fashion_mnist_of_labels_that_do_not_fit(tmp_path):
    write_fashion_mnist(tmp_path)
    folder = tmp_path / "FashionMNIST" / "raw"
    (folder / "t10k-labels-idx1-ubyte").write_bytes(
        (folder / "train-labels-idx1-ubyte").read_bytes()
    )
    settings = {"root": str(tmp_path), "download": False, **COMMON}
    line = error_line(KdbenchError, torchvision_sets.fashion_mnist, **settings)
    assert "t10k-labels-idx1-ubyte do not fit together: remove it and" in line


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_a_file_that_may_not_be_read(tmp_path, monkeypatch, name):
    if name == "fashion_mnist":
        write_fashion_mnist(tmp_path)
    else:
        write_cifar10(tmp_path, monkeypatch)
        (tmp_path / CIFAR10.base_folder / "data_batch_1").write_bytes(b"torn")

    def refuse(*_: object) -> None:  # a superuser may read whatever its mode is
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    build = getattr(torchvision_sets, name)
    line = error_line(KdbenchError, build, root=str(tmp_path), download=False, **COMMON)
    assert line.startswith(f"cannot read {tmp_path}/")
    assert line.endswith(": Permission denied")


def test_whole_files_that_torchvision_cannot_read(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)

    def fail(*_: object, **__: object) -> None:
        raise OSError("Input/output\nerror")

    monkeypatch.setattr(CIFAR10, "__init__", fail)
    settings = {"root": str(tmp_path), "download": False, **COMMON}
    line = error_line(KdbenchError, torchvision_sets.cifar10, **settings)
    assert line == f"cannot read {tmp_path / CIFAR10.base_folder}: Input/output error"


def test_image_folder_without_a_folder(tmp_path):
    assert "set dataset.root=DIR" in error_line(ConfigError, image_folder, root=None, **IMAGES)
    line = error_line(ConfigError, image_folder, root=str(tmp_path), **IMAGES)
    assert f"no folder {tmp_path}/train: dataset.root=DIR needs DIR/train and DIR/val" in line
    (tmp_path / "train").mkdir()
    line = error_line(ConfigError, image_folder, root=str(tmp_path), **IMAGES)
    assert "neither val nor test" in line
    write_images(tmp_path, "val", {"a/1.png": "RGB"})
    line = error_line(KdbenchError, image_folder, root=str(tmp_path), **IMAGES)
    assert f"{tmp_path}/train has no class folders" in line


@pytest.mark.parametrize(
    ("kind", "spoil", "line"),
    [
        (KdbenchError, "empty class", "train/c has no images"),
        (KdbenchError, "odd class", "have different classes: d must be in both"),
        (KdbenchError, "flat", "val has no class folders"),
        (KdbenchError, "corrupt", "train/a/1.png is no readable image (unknown format): restore"),
        (KdbenchError, "truncated", "val/b/1.jpg is no readable image (image file is truncated"),
        (KdbenchError, "fractions", "its pixels have more than 8 bits, and no range that is known"),
        (ConfigError, "both", "add dataset.test_split=test or dataset.test_split=val"),
        (ConfigError, "too large", "take 7.15e-07 GiB of memory, more than dataset.max_gib=1e-07"),
        (ConfigError, "no size", "dataset.image_size must be 1 or more, not 0"),
        (ConfigError, "no such split", "no dataset.test_split=tests: choose from val"),
    ],
)
def test_image_folder_spoiled(tmp_path, kind, spoil, line):
    settings = dict(IMAGES)
    write_images(tmp_path, "train", {"a/1.png": "RGB", "b/1.png": "RGB"})
    write_images(tmp_path, "val", {} if spoil == "flat" else {"a/1.jpg": "RGB", "b/1.jpg": "RGB"})
    first, last = tmp_path / "train/a/1.png", tmp_path / "val/b/1.jpg"
    match spoil:
        case "empty class":
            (tmp_path / "train/c").mkdir()
        case "odd class":
            write_images(tmp_path, "val", {"d/1.png": "RGB"})
        case "flat":
            write_images(tmp_path, "val", {"1.png": "RGB"})
        case "corrupt":
            first.write_bytes(b"not a picture")
        case "truncated":
            last.write_bytes(last.read_bytes()[:-40])
        case "fractions":
            write_images(tmp_path, "train", {"a/2.tif": "F"})
        case "both":
            (tmp_path / "test").mkdir()
        case "too large":
            settings["max_gib"] = 1e-7
        case "no size":
            settings["image_size"] = 0
        case "no such split":
            settings["test_split"] = "tests"
    assert line in error_line(kind, image_folder, root=str(tmp_path), **settings)


def table_of(**columns: pa.Array) -> pa.Table:
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = columns.pop("image", pa.array([{"bytes": b"x", "path": None}], cell))
    return pa.table({"image": images, **columns})


@pytest.mark.parametrize(
    ("kind", "table", "line"),
    [
        (ConfigError, table_of(lable=pa.array([0])), "label_column, did you mean 'lable'?"),
        (ConfigError, table_of(label=pa.array(["cat"])), "column label holds string, not integers"),
        (ConfigError, pa.table({"label": [0]}), "has no column image or img of {bytes, path}"),
        (ConfigError, table_of(image=pa.array([b"x"]), label=[0]), "has no column image or img of"),
        (KdbenchError, table_of(label=pa.array([None], pa.int64())), "row 0 has no label"),
        (
            KdbenchError,
            table_of(label=pa.array([0])),
            "row 0 is no readable image (unknown",
        ),
        (
            KdbenchError,
            table_of(
                image=pa.array(
                    [{"bytes": None, "path": "a.png"}],
                    pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
                ),
                label=[0],
            ),
            "row 0 has no image bytes",
        ),
    ],
)
def test_parquet_columns_and_rows(tmp_path, kind, table, line):
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / f"{split}.parquet")
    said = error_line(kind, parquet, root=str(tmp_path), label_column=None, **IMAGES)
    assert f"{tmp_path}/train.parquet" in said
    assert line in said


def test_parquet_files(tmp_path, monkeypatch):
    def said(kind: type[KdbenchError], **changed: object) -> str:
        settings = {"root": str(tmp_path), "label_column": None, **IMAGES, **changed}
        return error_line(kind, parquet, **settings)

    assert "set dataset.root=DIR" in said(ConfigError, root=None)
    assert "no file train*.parquet in" in said(ConfigError)
    train = tmp_path / "train-00000-of-00002.parquet"
    write_parquet(train, [0, 1, 2, 0, 1], list("abc"))
    assert "has 1 files of train, their names say 2" in said(KdbenchError)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [0, 1], list("abc"))
    assert "neither val nor test" in said(ConfigError)
    test = tmp_path / "test.parquet"
    write_parquet(test, [0, 1], list("acb"))
    assert "test.parquet has other columns or classes than train-00000" in said(KdbenchError)
    write_parquet(test, [0, 7], list("abc"))
    assert "test labels from 0 to 7: they must be 0 to 2" in said(KdbenchError)
    assert "more than dataset.max_gib=1e-09" in said(ConfigError, max_gib=1e-9)
    content = train.read_bytes()
    train.write_bytes(content[:-20])
    assert f"{train} is no readable parquet file" in said(KdbenchError)
    train.write_bytes(content[:100] + bytes(600) + content[700:])
    assert f"{train} " in said(KdbenchError)
    odd = SimpleNamespace(metadata=SimpleNamespace(num_rows=-1))
    with monkeypatch.context() as patch:
        patch.setattr(pq, "ParquetFile", lambda *_, **__: odd)
        assert "(a negative number of rows): fetch it again" in said(KdbenchError)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'kdbench[hf]'" in said(ConfigError)


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_views_of_oblong_images_and_every_pixel_value_on_every_device(device):
    """Also on a GPU, where PyTorch's division by a host number would round otherwise."""
    images, views = noise(2, 3, 16, 20), Views(2, True)
    images[0, :, :, :16] = torch.arange(256).view(16, 16)
    view = torch.arange(views.count)
    train = TrainImages(images, views, MEAN, STD, torch.device(device))
    batch = train.batch(torch.zeros_like(view).to(device), view.to(device)).cpu()
    assert batch.is_contiguous()
    for v in range(views.count):
        row, column, flip = (part.item() for part in views.decode(view[v]))
        picture = TF.crop(TF.pad(TF.to_pil_image(images[0]), 2), row, column, 16, 20)
        picture = TF.hflip(picture) if flip else picture
        assert torch.equal(batch[v], TF.normalize(TF.to_tensor(picture), MEAN, STD))
    reference = TF.normalize(images.float().div(255), MEAN, STD)
    assert torch.equal(normalise(images.to(device), MEAN, STD).cpu(), reference)


def test_a_batch_reads_nothing_back():
    """A meta tensor has no values: whatever would wait for the device fails on it."""
    train = TrainImages(noise(9, 3, 8, 8), Views(1, True), MEAN, STD, torch.device("meta"))
    index = torch.zeros(4, dtype=torch.int64, device="meta")
    assert train.batch(index, index).shape == (4, 3, 8, 8)


def test_bundled_and_synthetic_data_are_pinned():
    """Typed in: whatever changes them makes other data of the same name."""
    settings = {"num_classes": 5, "num_train": 50, "num_test": 50, "image_size": 16, "seed": 0}
    assert digits(**COMMON).fingerprint.startswith("61e78cff52582108")
    assert synthetic(**settings, **COMMON).fingerprint.startswith("a5881bdb0cf604bb")
