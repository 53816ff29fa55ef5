"""ImageNet's layout, streamed: the pixels are torchvision's, and an epoch is always the same."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF

import kdbench.training.member
from kdbench.data.augmentation.crops import ResizedCrops
from kdbench.data.augmentation.views import epoch_plan, normalise
from kdbench.data.regimes import kept_rows
from kdbench.data.streaming.imagenet import imagenet
from kdbench.data.streaming.streamed import StreamedDataset, images_of
from kdbench.errors import ConfigError, KdbenchError
from kdbench.parallel.micro_batches import Cutting
from kdbench.parallel.ranks import Ranks
from kdbench.parallel.torchrun import Place
from support.folders import CLASSES, real, truncate, write_class_folders

SIZE, RESIZE = 32, 36
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CPU = torch.device("cpu")
RUN = [
    *("dataset=imagenet", f"dataset.image_size={SIZE}", f"dataset.test_resize={RESIZE}"),
    *("schedule=synthetic", "schedule.epochs=2", "schedule.milestones=[]", "schedule.batch_size=8"),
    *("runtime=cpu", "runtime.threads=1"),
]


@pytest.fixture
def folder(tmp_path) -> Path:
    for split, count in (("train", 30), ("val", 12)):
        write_class_folders(tmp_path / "data" / split, count, (60, 48))
    return tmp_path / "data"


@pytest.fixture
def threads():
    """Set the number of threads; as before afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def load(folder: Path, **changed: object) -> StreamedDataset:
    settings = {"image_size": SIZE, "test_resize": RESIZE, "flip": True, "val_split": 0, **changed}
    return imagenet(str(folder), mean=MEAN, std=STD, **settings)


def opened(data: StreamedDataset, row: int) -> Image.Image:
    return Image.open(data.train.images.source.where(row)).convert("RGB")


def test_files_classes_and_labels(folder):
    data = load(folder)
    assert (data.name, data.num_classes) == ("imagenet", 3)
    assert data.train.images.shape == (30, 3, SIZE, SIZE)
    assert data.train.labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    for name, label in zip(data.test.images.source.names, data.test.labels, strict=True):
        assert name.startswith(f"val/{CLASSES[label]}/")
    held = load(folder, val_split=6)
    names = [set(split.images.source.names) for split in (held.train, held.val)]
    assert [len(part) for part in names] == [24, 6]
    assert names[0] | names[1] == set(data.train.images.source.names)


def test_fewer_training_images_are_those_of_sets_in_memory(folder):
    """Stratified, nested and in order; what is scored and held out stays, and the hash does not."""
    whole, more, less = (load(folder, val_split=6, fraction=one) for one in (1.0, 0.75, 0.5))
    names = [one.train.images.source.names for one in (whole, more, less)]
    assert set(names[2]) < set(names[1]) < set(names[0])
    assert names[2] == [names[0][row] for row in kept_rows(whole.train.labels, 3, 0.5, 1.0)]
    assert less.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for one in (more, less):
        assert one.val.images.source.names == whole.val.images.source.names
        assert one.test.images.source.names == whole.test.images.source.names
    assert len({one.fingerprint for one in (whole, more, less)}) == 3
    tail = load(folder, long_tail=5.0)
    assert tail.train.labels.bincount().tolist() == [10, 4, 2]
    for settings, said in (
        ({"fraction": 0.0}, r"dataset\.fraction must be above 0 and at most 1, not 0\.0"),
        ({"fraction": 0.01}, "leaves class 0 without training images, of 10: keep more"),
    ):
        with pytest.raises(ConfigError, match=said):
            load(folder, **settings)


def test_scored_images_are_torchvision_s_to_the_bit(folder):
    images = load(folder).train.images
    for row in range(30):
        resized = TF.resize(opened(load(folder), row), [RESIZE])
        expected = TF.pil_to_tensor(TF.center_crop(resized, [SIZE, SIZE]))
        assert torch.equal(images[torch.tensor([row])][0], expected)
    sliced = torch.cat([images[start : start + 8] for start in range(0, 30, 8)])
    assert torch.equal(sliced, images[torch.arange(30)])


def test_views_are_torchvision_s_to_the_bit(folder):
    data = load(folder)
    _, view = epoch_plan(30, data.views, seed=1, epoch=1)
    found = images_of(data, CPU).crop(torch.arange(30), view)
    flips = 0
    for row, number in enumerate(view.tolist()):
        image = opened(data, row)
        box = data.views.box(number, image.height, image.width)
        picture = TF.resized_crop(image, *box[:4], [SIZE, SIZE])
        picture = TF.hflip(picture) if box.flip else picture
        flips += box.flip
        assert torch.equal(found[row], TF.pil_to_tensor(picture))
    assert 0 < flips < 30


def test_crops_are_distributed_as_torchvision_s():
    height, width, count = 375, 500, 4000
    numbers = epoch_plan(count, ResizedCrops(True), seed=3, epoch=1)[1].tolist()
    ours = torch.tensor([ResizedCrops(True).box(n, height, width) for n in numbers]).double()
    assert ours[:, 4].mean().item() == pytest.approx(0.5, abs=0.04)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(count)]
    ).double()
    levels = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    for column in range(4):  # top, left, height, width: the two-sample Kolmogorov-Smirnov distance
        a, b = ours[:, column].sort().values, theirs[:, column].sort().values
        at = torch.quantile(b, levels)
        gap = torch.searchsorted(a, at, right=True) - torch.searchsorted(b, at, right=True)
        assert gap.abs().max().item() / count < 1.95 * (2 / count) ** 0.5  # p = 0.001
    area = ours[:, 2] * ours[:, 3] / (height * width)
    assert 0.07 < area.min() < 0.1
    assert area.max() > 0.9


@pytest.mark.parametrize(("height", "width"), [(5, 1000), (1000, 5)])
def test_a_strip_is_cropped_in_its_middle_as_torchvision_does(height, width):
    theirs = RandomResizedCrop.get_params(
        torch.empty(3, height, width), (0.08, 1.0), (3 / 4, 4 / 3)
    )
    assert ResizedCrops(False).box(1, height, width)[:4] == tuple(theirs)


def test_an_epoch_is_the_same_with_any_number_of_threads_and_from_any_batch_on(folder, threads):
    data = load(folder)
    plan = epoch_plan(30, data.views, seed=5, epoch=2)
    threads(1)
    whole = list(images_of(data, CPU).epoch(*plan, size=8, first=0))
    assert [len(index) for index, _ in whole] == [8, 8, 8, 6]
    assert torch.equal(torch.cat([index for index, _ in whole]), plan[0])
    index, images = whole[1]
    raw = images_of(data, CPU).crop(index, plan[1][index])
    assert torch.equal(images, normalise(raw, data.mean, data.std))
    threads(2)
    for first in (0, 2):
        rest = list(images_of(data, CPU).epoch(*plan, size=8, first=first))
        assert len(rest) == 4 - first
        for (a, x), (b, y) in zip(rest, whole[first:], strict=True):
            assert torch.equal(a, b)
            assert torch.equal(x, y)
    another = epoch_plan(30, data.views, seed=5, epoch=3)
    assert not torch.equal(another[1], plan[1])


def test_a_rank_gets_its_parts_of_every_batch_and_no_other(folder):
    data = load(folder)
    plan = epoch_plan(30, data.views, seed=5, epoch=2)
    whole = list(images_of(data, CPU).epoch(*plan, size=8, first=1))
    cut = Cutting(3, 8, 30, Ranks(Place(1, 2))).cut  # the last two of three parts
    parts = list(images_of(data, CPU).epoch(*plan, size=8, first=1, cut=cut))
    assert [len(index) for index, _ in parts] == [3, 2, 3, 2, 2, 2]
    for number, (index, images) in enumerate(whole):
        rows, cuts = map(torch.cat, zip(*parts[2 * number : 2 * number + 2], strict=True))
        assert torch.equal(rows, index[-len(rows) :])
        assert torch.equal(cuts, images[-len(rows) :])


def test_a_fingerprint_sees_names_sizes_and_splits(folder):
    first = load(folder).fingerprint
    assert load(folder).fingerprint == first
    moved = folder.parent / "elsewhere"
    shutil.copytree(folder, moved)
    assert load(moved).fingerprint == first
    assert load(folder, val_split=6).fingerprint != first
    path = folder / "train" / load(folder).train.images.source.names[0].removeprefix("train/")
    path.write_bytes(path.read_bytes() + b"\0")
    assert load(folder).fingerprint != first


def test_layouts_that_do_not_fit_are_named(folder, tmp_path):
    with pytest.raises(KdbenchError, match=r"^imagenet is not in .*: set dataset\.root=DIR"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="image_size=64 must be from 1 to"):
        load(folder, image_size=64)
    val = folder / "val"
    (val / "n02").rename(val / "n04")
    with pytest.raises(KdbenchError, match=r"different classes: n02, n04 must be in both$"):
        load(folder)
    for path in val.rglob("*.JPEG"):
        path.rename(val / path.name)
    for name in ("n01", "n03", "n04"):
        (val / name).rmdir()
    with pytest.raises(KdbenchError, match=r"no class folders: sort its images into val/CLASS/"):
        load(folder)
    shutil.rmtree(folder / "train" / "n01")
    (folder / "train" / "n01").mkdir()
    with pytest.raises(KdbenchError, match="n01 has no images: add some or remove the folder"):
        load(folder)


def test_a_truncated_image_stops_the_run_and_is_named(folder, command):
    truncate(folder / "train" / "n02" / "n02_4.JPEG")
    result = command("train", *RUN, f"dataset.root={folder}")
    assert "n02_4.JPEG is no readable image (" in result.error_line


def test_a_link_to_nothing_is_named(folder):
    (folder / "train" / "n02" / "n02_4.JPEG").unlink()
    (folder / "train" / "n02" / "n02_4.JPEG").symlink_to("nowhere")
    with pytest.raises(KdbenchError, match=r"n02_4.JPEG is a link to nothing: mend or remove it"):
        load(folder)


def test_a_system_that_gives_no_threads_is_said(folder, command, monkeypatch):
    class NoThreads:
        def submit(self, *_):
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr("kdbench.data.streaming.image_files.threads", lambda _: NoThreads())
    result = command("train", *RUN, f"dataset.root={folder}")
    assert result.error_line == (
        "the threads that decode images cannot be started (can't start new thread): lower "
        "runtime.threads, or raise the limit of processes"
    )


def test_a_run_stopped_inside_an_epoch_ends_with_the_same_bits(folder, command, monkeypatch):
    arguments = [*RUN, f"dataset.root={folder}", "schedule.warmup_epochs=2"]
    assert command("train", *arguments, "runs_dir=whole").code == 0
    original, count = kdbench.training.member.train_step, 0

    def stopped(*given):
        nonlocal count
        count += 1
        if count == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*given)

    monkeypatch.setattr(kdbench.training.member, "train_step", stopped)
    assert command("train", *arguments).code != 0
    assert command("train", *arguments).code == 0
    (whole,), (halved,) = Path("whole").glob("imagenet-*"), Path("runs").glob("imagenet-*")
    assert whole.name == halved.name
    a, b = (load_file(run / "student.safetensors") for run in (whole, halved))
    assert all(torch.equal(a[key], b[key]) for key in a)
    record = json.loads((halved / "record.json").read_text())
    assert record["data"]["train"], record["data"]["test"] == (30, 12)


def test_a_live_teacher_teaches_two_views_and_a_table_is_refused(folder, command):
    arguments = [*RUN, f"dataset.root={folder}", "schedule.epochs=1"]
    assert command("train", *arguments, "student=resnet14").code == 0
    (teacher,) = Path("runs").glob("imagenet-none-resnet14-*")
    named = [
        "teacher=resnet14",
        f"teacher.resnet14.checkpoint={teacher}",
        "teacher.resnet14.allow_chance=true",
    ]
    for method in ("kd", "mlkd"):
        result = command("train", *arguments, *named, f"method={method}")
        assert result.code == 0, result.err
    assert not Path("runs/.tables").exists()
    refused = command("train", *arguments, *named, "method=kd", "seed=1", "runtime.teacher=table")
    assert "reads views out of a continuum, which no output cache holds" in refused.error_line


@pytest.mark.slow
def test_imagenette_trains(command):
    root = real("imagenette-mini")
    arguments = ["dataset=imagenet", f"dataset.root={root}", "student=resnet8"]
    settings = ["dataset.image_size=32", "dataset.test_resize=36", "schedule.lr=0.05"]
    short = ["schedule.epochs=4", "schedule.milestones=[3]", "schedule.batch_size=32"]
    result = command("train", *arguments, *settings, *short, "runtime=cpu")
    assert result.code == 0, result.err
    (path,) = Path("runs").glob("imagenet-none-resnet8-ce-s0-*/record.json")
    record = json.loads(path.read_text())
    assert (record["data"]["train"], record["data"]["test"]) == (400, 150)
    assert record["top1_last"] > 15  # chance is 10


@pytest.mark.slow
def test_a_vision_transformer_learns_from_a_convolutional_teacher(folder, command):
    """Of timm, at the size that it is made for; without taps, so from logits alone."""
    size = ["dataset.image_size=160", "dataset.test_resize=160", "schedule.batch_size=15"]
    arguments = [*RUN, f"dataset.root={folder}", *size, "schedule.epochs=1"]
    assert command("train", *arguments, "student=timm", "student.model=test_resnet").code == 0
    (teacher,) = Path("runs").glob("imagenet-none-test_resnet-*")
    student = ["student=timm", "student.model=test_vit"]
    named = ["teacher=timm", "teacher.timm.network.model=test_resnet"]
    result = command(
        "train",
        *arguments,
        *student,
        *named,
        "method=kd",
        f"teacher.timm.checkpoint={teacher}",
        "teacher.timm.allow_chance=true",
    )
    assert result.code == 0, result.err
    (path,) = Path("runs").glob("imagenet-timm_test_resnet-test_vit-kd-s0-*")
    weights = load_file(path / "student.safetensors")
    start = torch.zeros_like(weights["head.bias"])  # timm's ViTs start with it
    assert not torch.equal(weights["head.bias"], start)


def test_an_image_size_that_a_network_cannot_take_is_said(folder, command):
    model = ["student=timm", "student.model=vit_tiny_patch16_224"]
    line = command("train", *RUN, f"dataset.root={folder}", *model).error_line
    assert "vit_tiny_patch16_224 cannot take images of 32 x 32 (Input height (32) doesn't" in line
    assert "student.size=224" in line
    assert line.endswith("or choose another network or dataset.image_size")
