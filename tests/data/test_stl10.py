"""STL-10 from files of its own layout, made small."""

import hashlib

import numpy as np
import pytest
import torch
from torchvision.datasets import STL10

from kdbench.data.memory.torchvision_sets import stl10
from kdbench.errors import KdbenchError

SETTINGS = {"mean": [0.5] * 3, "std": [0.25] * 3, "pad": 12, "flip": True, "val_split": 0}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Five files, each with the checksum that torchvision holds it against."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = {"unlabeled_X.bin": b"none"}
    for part, n in (("train", 20), ("test", 30)):
        files[f"{part}_X.bin"] = rng.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8).tobytes()
        files[f"{part}_y.bin"] = (np.arange(n, dtype=np.uint8) % 10 + 1).tobytes()
    (folder / "class_names.txt").write_text("\n".join(map(str, range(10))))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for key in ("train_list", "test_list"):
        sums = [[name, hashlib.md5(files[name]).hexdigest()] for name, _ in getattr(STL10, key)]
        monkeypatch.setattr(STL10, key, sums)
    return tmp_path


def test_labels_count_from_0_and_rows_are_rows(root):
    data = stl10(str(root), False, **SETTINGS)
    assert data.train.images.shape == (20, 3, 96, 96)
    assert data.test.labels.tolist() == [n % 10 for n in range(30)]
    raw = np.frombuffer((root / "stl10_binary" / "test_X.bin").read_bytes(), np.uint8)
    columns = torch.from_numpy(raw.reshape(30, 3, 96, 96).copy())  # the file goes by columns
    assert data.test.images.equal(columns.transpose(2, 3))


def test_a_missing_and_an_altered_file_are_told(root):
    path = root / "stl10_binary" / "train_X.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(KdbenchError, match=r"train_X.bin is truncated or altered"):
        stl10(str(root), False, **SETTINGS)
    path.unlink()
    with pytest.raises(KdbenchError, match=r"stl10 is not in .*no file train_X.bin.*download=true"):
        stl10(str(root), False, **SETTINGS)
