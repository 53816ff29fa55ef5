"""The output cache holds the live teacher's bits, or is not used."""

import json
from pathlib import Path

import pytest
import torch

import kdbench.teachers.outputs
from kdbench.assembly.make import make
from kdbench.data.augmentation.views import TrainImages
from kdbench.errors import ConfigError
from kdbench.system.runtime import Runtime
from kdbench.teachers.frozen import freeze
from kdbench.teachers.output_cache import OutputCache
from kdbench.teachers.outputs import CachedTeacher, CachedTeachers
from kdbench.training.together import train, train_together
from kdbench.types import Batch
from support.machine import needs_compiler, needs_equal_rows
from support.runs import assert_same_runs, config, runs, same, taught, weights
from support.zoo import constructor, trained

IMAGES = 200
WHOLE_BATCHES = ["dataset.num_train=48", "schedule.batch_size=16"]


@pytest.fixture
def teachers(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return [str(train(config("student=resnet14")))]


def tables(where: str = "runs") -> dict[str, dict]:
    """Each output cache's facts, by its folder."""
    paths = Path(where, ".tables").glob("*/table.json")
    return {str(path.parent): json.loads(path.read_text()) for path in paths}


@pytest.mark.parametrize(
    "channels_last",
    [True, pytest.param(False, marks=pytest.mark.long)],
    ids=["channels_last", "contiguous"],
)
@pytest.mark.parametrize("network", ["resnet14", "wrn_16_2"])
def test_a_table_has_the_live_teachers_bits(tmp_path, network, channels_last):
    node = {
        "_target_": "kdbench.data.memory.synthetic.synthetic",
        "num_classes": 10,
        "num_test": 10,
    }
    node |= {"num_train": IMAGES, "image_size": 32, "seed": 0, "mean": [0.5] * 3, "std": [0.25] * 3}
    data = make({**node, "pad": 4, "flip": True, "val_split": 0})
    runtime = Runtime("cpu", channels_last=channels_last)
    images = TrainImages(data.train.images, data.views, data.mean, data.std, runtime.device)
    body = trained(constructor(network)(num_classes=10)).to(memory_format=runtime.memory_format)
    index = torch.arange(IMAGES)
    view = index % data.views.count
    teacher = freeze(body, images.batch(index[:2], view[:2]), "fp32", runtime, IMAGES, print)
    assert teacher.facts["folded"] > 0
    needs_equal_rows(teacher, images.batch(index, view), 64, 16)
    width = body.fc.in_features
    table = OutputCache(tmp_path, {"dtype": "float32"}, IMAGES, data.views.count, 10 + width)
    cached = CachedTeachers(
        [CachedTeacher(teacher, table, {"pooled": width})], images, runtime.memory_format
    )
    cached.start_epoch(view, lambda: False)
    live = kdbench.teachers.outputs.LiveTeachers([teacher], runtime, print)
    for size in (64, 16):
        for rows in index[: IMAGES // size * size].split(size):
            batch_images = images.batch(rows, view[rows]).to(memory_format=runtime.memory_format)
            batch = Batch(batch_images, data.train.labels[rows], rows, torch.tensor(1.0))
            (expected,), (found,) = live.outputs(batch), cached.outputs(batch)
            assert torch.equal(found.logits, expected.logits), size
            assert torch.equal(found.taps["pooled"], expected.taps["pooled"]), size


@pytest.mark.parametrize("method", ["kd", "crd"])
def test_training_from_a_table_is_training_live(teachers, method):
    network = trained(constructor("resnet14")(num_classes=10))
    needs_equal_rows(network, torch.randn(256, 3, 32, 32), 16)
    for source in ("live", "table"):
        given = [*WHOLE_BATCHES, f"runtime.teacher={source}", f"runs_dir={source}"]
        train(taught(method, teachers, *given))
    assert_same_runs("live", "table")
    (facts,) = tables("table").values()
    assert facts["answers"] == (["logits"] if method == "kd" else ["logits", "pooled"])
    assert facts["dtype"] == "float32"
    assert (facts["folded"], facts["compiled"], facts["precision"]) == (15, False, "fp32")
    assert not tables("live")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_training_from_a_compiled_teachers_table_is_training_live(teachers):
    needs_compiler()
    for source in ("live", "table"):
        given = ["runtime.compile=on", f"runtime.teacher={source}", f"runs_dir={source}"]
        train(taught("kd", teachers, *given))  # 8 images in the last batch are filled up too
    assert_same_runs("live", "table")
    (facts,) = tables("table").values()
    assert facts["compiled"] is True


def test_half_floats_are_a_table_and_a_run_of_their_own(teachers):
    for number in ("fp32", "fp16"):
        train(taught("kd", teachers, f"schedule.table_precision={number}", "runtime.teacher=table"))
    assert sorted(facts["dtype"] for facts in tables().values()) == ["float16", "float32"]
    done = [path for path in Path("runs").glob("*-kd-s0-*")]
    assert len(done) == 2
    assert not same(*(weights(path) for path in done))


def test_auto_shows_images_to_the_teacher_where_a_table_cannot_hold_what_is_read(teachers):
    train_together([taught(method, teachers) for method in ("kd", "at")])
    assert not tables(), "at reads maps, and kd reads the same pass"
    train(taught("kd", teachers, "schedule.lr=0.01"))
    assert [facts["answers"] for facts in tables().values()] == [["logits"]]


@pytest.mark.parametrize(
    ("method", "read"), [("at", "stage1, stage2, stage3"), ("mlkd", "several views")]
)
def test_a_table_is_refused_by_name_where_it_cannot_be(teachers, method, read):
    with pytest.raises(ConfigError, match=f"the method reads {read}, which no output cache holds"):
        train(taught(method, teachers, "runtime.teacher=table"))


def test_a_table_torn_in_the_middle_of_a_sweep_changes_nothing(teachers):
    for where in ("whole", "torn"):
        train(taught("kd", teachers, f"runs_dir={where}"))
        (folder,) = tables(where)
        rows = Path(folder, "rows")
        if where == "torn":
            content = bytearray(rows.read_bytes())
            content[: len(content) // 3] = bytes(len(content) // 3)
            content[len(content) // 2] ^= 1
            rows.write_bytes(content[: len(content) * 3 // 4])
            Path(folder, "table.json").write_text('{"teacher": ')
        train(taught("dkd", teachers, f"runs_dir={where}"))
    assert_same_runs("whole", "torn")
    assert len(runs("torn")) == 2
