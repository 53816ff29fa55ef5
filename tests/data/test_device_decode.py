"""Decoding on a device, with a stand-in for nvJPEG: it has never run on a GPU; DALI on the CPU."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from kdbench.data.augmentation.crops import ResizedCrops
from kdbench.data.augmentation.views import epoch_plan
from kdbench.data.decoding.dali import Dali
from kdbench.data.decoding.device_decode import nvjpeg
from kdbench.data.streaming.imagenet import imagenet
from kdbench.data.streaming.streamed import StreamedImages, files_of, images_of
from kdbench.errors import ConfigError, KdbenchError
from kdbench.records.protocol import protocol_of
from kdbench.schema.node import Node
from support.folders import photograph, truncate, write_class_folders

CPU = torch.device("cpu")


class StandIn:
    """Decodes what nvJPEG does, and as Pillow; a batch with a CMYK image fails as a whole."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, files: list[Tensor]) -> list[Tensor]:
        self.batches.append(len(files))
        pictures = [Image.open(io.BytesIO(file.numpy().tobytes())) for file in files]
        if any(picture.mode == "CMYK" for picture in pictures):
            raise RuntimeError("unsupported")
        return [TF.pil_to_tensor(picture.convert("RGB")) for picture in pictures]


@pytest.fixture
def folder(tmp_path) -> Path:
    for split, count in (("train", 24), ("val", 6)):
        write_class_folders(tmp_path / split, count, (60, 48))
    photograph(1, 40, 50).save(tmp_path / "train" / "n01" / "a_png.JPEG", "PNG")
    return tmp_path


def load(folder: Path, **changed: object) -> StreamedImages:
    scales = {"mean": [0.5] * 3, "std": [0.25] * 3, "flip": True, "val_split": 0}
    data = imagenet(str(folder), 32, 36, **scales, **changed)
    constants = data.mean, data.std, CPU
    return StreamedImages(files_of(data.train), data.views, *constants, StandIn())


def test_every_kind_of_image_is_cut_to_the_same_view(folder):
    images, view = load(folder), epoch_plan(25, ResizedCrops(True), seed=1, epoch=1)[1]
    found = images.crop(torch.arange(25), view)
    assert images.decode.batches[0] == 24  # all but the PNG; then one by one
    assert images.decode.batches[1:] == [1] * 24
    for row, number in enumerate(view.tolist()):
        picture = TF.pil_to_tensor(images.files.source.read(row))
        top, left, height, width, flip = images.views.box(number, *picture.shape[1:])
        cut = TF.resized_crop(picture, top, left, height, width, [32, 32], antialias=True)
        assert torch.equal(found[row], cut.flip(-1) if flip else cut)
    plain = StreamedImages(images.files, images.views, [0.5] * 3, [0.25] * 3, CPU)
    gap = (found.int() - plain.crop(torch.arange(25), view).int()).abs()
    assert gap.max() <= 2  # scaling rounds otherwise; decoding is the stand-in's


def test_an_epoch_goes_on_from_any_batch(folder):
    images = load(folder)
    plan = epoch_plan(25, images.views, seed=5, epoch=1)
    whole = list(images.epoch(*plan, size=8, first=0))
    for (index, ours), (expected, same) in zip(
        images.epoch(*plan, size=8, first=2), whole[2:], strict=True
    ):
        assert torch.equal(index, expected)
        assert torch.equal(ours, same)


def test_a_truncated_image_goes_through_pillow_and_its_policy(folder):
    path = folder / "train" / "n02" / "n02_4.JPEG"
    truncate(path)
    rows = torch.arange(25)
    with pytest.raises(KdbenchError, match=r"n02_4\.JPEG is no readable image"):
        load(folder).crop(rows, rows)
    images = load(folder, on_corrupt="replace")
    images.crop(rows, rows)
    assert list(images.files.placeholders.broken.values()) != []
    path.unlink()
    with pytest.raises(KdbenchError, match=r"n02_4\.JPEG .*No such file"):
        images.crop(rows, rows)


def test_without_a_gpu_it_is_refused_and_it_is_a_protocol_of_its_own(folder):
    scales = {"mean": [0.5] * 3, "std": [0.25] * 3, "flip": True, "val_split": 0}
    data = imagenet(str(folder), 32, 36, **scales, decoder="nvjpeg")
    with pytest.raises(KdbenchError, match=r"decodes on a GPU: set dataset\.decoder=pillow"):
        images_of(data, CPU)
    dataset = Node("imagenet", {"decoder": "nvjpeg"}, "imagenet")
    schedule = Node("Schedule", {"epochs": 100, "batch_size": 512})
    assert protocol_of(dataset, schedule) == "imagenet-100ep-b512-nvjpeg-last"


def test_a_torchvision_without_its_decoder_is_one_line(monkeypatch):
    monkeypatch.delattr("torchvision.io.decode_jpeg", raising=False)
    with pytest.raises(ConfigError, match=r"no decode_jpeg: set dataset\.decoder="):
        nvjpeg(CPU)


def test_dali_decodes_as_pillow_and_survives_what_it_cannot_read(folder):
    pytest.importorskip("nvidia.dali", reason="needs DALI: pip install 'kdbench[dali]'")
    truncate(folder / "train" / "n02" / "n02_4.JPEG")
    images = load(folder, on_corrupt="replace")
    rows, view = torch.arange(25), epoch_plan(25, ResizedCrops(True), seed=1, epoch=1)[1]
    expected = images.crop(rows, view)
    images.decode = Dali(CPU, 1)
    assert torch.equal(images.crop(rows[:8], view[:8]), expected[:8])
    assert torch.equal(images.crop(rows, view), expected)
    broken = torch.frombuffer(bytearray(b"no image"), dtype=torch.uint8)
    with pytest.raises(RuntimeError):
        images.decode([broken])
    assert torch.equal(images.crop(rows, view), expected)


def test_without_dali_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    scales = {"mean": [0.5] * 3, "std": [0.25] * 3, "flip": True, "val_split": 0}
    data = imagenet(str(folder), 32, 36, **scales, decoder="dali")
    with pytest.raises(ConfigError, match=r"pip install 'kdbench\[dali\]'"):
        images_of(data, CPU)


def test_a_pipeline_of_dali_that_fails_is_made_anew(monkeypatch):
    """With a stand-in for DALI, whose pipelines end with the first error."""
    made = []

    class Pipeline:
        def __init__(self, *_: object, **__: object) -> None:
            made.append(self)

        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...
        def set_outputs(self, _: object) -> None: ...
        def build(self) -> None: ...

        def run(self, files: list[np.ndarray]) -> tuple[list[np.ndarray]]:
            if any(len(file) == 1 for file in files):
                raise ValueError("no image")
            return ([np.ones((2, 3, 3), np.uint8)] * len(files),)

    fn = SimpleNamespace(
        external_source=lambda **_: None, decoders=SimpleNamespace(image=lambda *_, **__: None)
    )
    types = SimpleNamespace(UINT8=0, RGB=0)
    stand_in = SimpleNamespace(Pipeline=Pipeline, fn=fn, types=types)
    monkeypatch.setitem(sys.modules, "nvidia", SimpleNamespace(dali=stand_in))
    monkeypatch.setitem(sys.modules, "nvidia.dali", stand_in)
    decode, files = Dali(CPU, 1), [torch.zeros(5, dtype=torch.uint8)] * 2
    assert [image.shape for image in decode(files)] == [(3, 2, 3)] * 2
    assert len(decode(files[:1])) == len(made) == 1
    with pytest.raises(RuntimeError, match="no image"):
        decode([torch.zeros(1, dtype=torch.uint8)])
    decode(files)
    assert len(made) == 2
