"""Detection on a tiny set in COCO's layout: data, losses, scores, and runs from start to record."""

import errno
import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import kdbench.tasks.detection.task
import kdbench.training.member
from kdbench.assembly.build import build_method
from kdbench.errors import ConfigError, KdbenchError
from kdbench.parallel.ranks import Ranks
from kdbench.parallel.torchrun import Place
from kdbench.records.identity import identify
from kdbench.records.passport import Passport
from kdbench.records.reading import record_of
from kdbench.records.record import find_records
from kdbench.schema.node import Node
from kdbench.system.runtime import Runtime
from kdbench.tasks.detection.annotations import read_annotations, targets
from kdbench.tasks.detection.batches import Plan, prepared, train_batches
from kdbench.tasks.detection.coco import coco, read_picture
from kdbench.tasks.detection.losses import losses_and_sums
from kdbench.tasks.detection.networks import (
    Detector,
    fasterrcnn_mobilenet_v2,
    fasterrcnn_resnet,
)
from kdbench.tasks.detection.scores import Scores
from kdbench.tasks.detection.task import Detection, LiveDetectors
from kdbench.tasks.detection.teachers import compare, load_teacher
from kdbench.teachers.loading import TeacherFile
from kdbench.tracking.sending import history
from kdbench.training.member import Member
from kdbench.training.step_schedule import StepSchedule
from support.commands import ROOT, compose, compose_method
from support.records import make_record, record_at
from support.shapes import make_shapes

pycocotools = pytest.importorskip("pycocotools", reason="pip install 'kdbench[detection]'")

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = {"anchor_sizes": [8, 16, 32, 48, 64], "proposals": 60, "rois_per_image": 32}
RUN = [
    *("task=detection", "runtime=cpu", "runtime.threads=1", "runtime.channels_last=false"),
    *("dataset.min_sizes=[48,64]", "dataset.max_size=64"),
    *(f"student.{key}={value}".replace(" ", "") for key, value in SMALL.items()),
    *("schedule.batch_size=2", "schedule.lr=0.003", "schedule.warmup_steps=2"),
]
SHORT = ["schedule.steps=4", "schedule.milestones=[3]", "schedule.score_steps=2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("shapes"), train=9, val=4)


def data_of(root: Path, **changes):
    settings = {"mean": MEAN, "std": STD, "min_sizes": [48, 64], "max_size": 64, "flip": True}
    return coco(str(root), **(settings | changes))


def read(data, steps: int) -> list:
    """The first batches of two images."""
    return list(train_batches(data, map(Plan(data, 2, 0), range(steps)), CPU))


def change(root: Path, tmp_path: Path, act, split: str = "train2017") -> Path:
    """A copy of the set's annotations with one thing changed; returns its root."""
    make_shapes(tmp_path, train=9, val=4)
    path = tmp_path / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    act(content)
    path.write_text(json.dumps(content))
    return tmp_path


def test_the_reader_keeps_what_can_be_trained_on(root, tmp_path):
    data = data_of(root)
    assert data.num_classes == 4
    assert len(data.train) == 8, "an image without boxes is not trained on"
    assert data.test.labels == {3: 1, 7: 2, 8: 3}
    x, _, width, _ = read_annotations(data.test.path).boxes[0].bbox
    assert width > 0
    assert x + width <= 96

    def act(content):
        content["annotations"][0]["iscrowd"] = 1
        content["annotations"][1]["bbox"] = [10, 10, 0, 5]
        content["annotations"][2]["bbox"][2] = 200

    changed = read_annotations(change(root, tmp_path, act) / "annotations/instances_train2017.json")
    found, flat = targets(changed)
    count = len(changed.boxes)
    assert sum(len(target.labels) for target in found.values()) == count - 2
    assert [box.id for box in flat] == [2]
    assert max(target.boxes.max() for target in found.values()) == 96, "clipped to the image"
    assert "boxes without an area are not trained on (2)" in data_of(tmp_path).notes[0]


@pytest.mark.parametrize(
    ("act", "line"),
    [
        (lambda c: c["annotations"][0].update(category_id=5), "annotation 1: there is no category"),
        (lambda c: c["annotations"][0].update(image_id=5), "annotation 1: there is no image 5"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "annotation 1: bbox must be four"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, math.nan, 3]), "bbox must be four"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 3]), "has a negative size"),
        (lambda c: c["annotations"][0].update(bbox=[200, 2, 3, 3]), "lies outside its image of 96"),
        (lambda c: c["annotations"][0].update(iscrowd=2), "iscrowd must be 0 or 1, not 2"),
        (lambda c: c["annotations"][0].update(area="x"), "area must be a number"),
        (lambda c: c["annotations"][1].update(id=1), "two annotations have the same id"),
        (lambda c: c["annotations"][1].update(id="a"), "id must be a whole number, not 'a'"),
        (lambda c: c["images"][1].update(id=100), "image 100 stands there twice"),
        (lambda c: c["images"][0].update(file_name="../x.png"), "is outside its folder"),
        (lambda c: c["images"][0].update(file_name=7), "image 100 has no file_name"),
        (lambda c: c["images"][0].update(file_name="no.png"), "no image"),
        (lambda c: c["images"][0].update(width=0), "image 100 has the size 0 x 96"),
        (lambda c: c["images"][0].update(width=95), "has 96 x 96 pixels, its annotations say 95"),
        (lambda c: c["categories"].pop(), "there is no category 8"),
        (lambda c: c["categories"][0].update(name="x"), "have other categories"),
        (lambda c: c["categories"].append(c["categories"][0]), "category 3 stands there twice"),
        (lambda c: c.update(categories=[]), "has no categories"),
        (lambda c: c.update(annotations=[]), "has no image with a box"),
        (lambda c: c.pop("images"), "has no list of images"),
    ],
)
def test_a_broken_file_is_one_line(root, tmp_path, act, line):
    with pytest.raises(KdbenchError) as caught:
        read(data_of(change(root, tmp_path, act)), 4)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_files_are_one_line_too(tmp_path):
    make_shapes(tmp_path, train=9, val=4)
    picture = next(tmp_path.glob("train2017/*.png"))
    picture.write_bytes(picture.read_bytes()[:100])
    with pytest.raises(KdbenchError, match="no readable image"):
        read(data_of(tmp_path), 4)
    for text, line in (("{", "no readable JSON"), ("[]", "no list of images")):
        (tmp_path / "annotations/instances_val2017.json").write_text(text)
        with pytest.raises(KdbenchError, match=line):
            data_of(tmp_path)
    (tmp_path / "annotations/instances_val2017.json").unlink()
    (tmp_path / "annotations/instances_val2017.json").mkdir()
    with pytest.raises(KdbenchError, match="not a regular file"):
        data_of(tmp_path)
    for changes in ({"min_sizes": []}, {"max_size": 50}, {"std": (1, 1)}):
        with pytest.raises(ConfigError):
            data_of(tmp_path, **changes)


@pytest.mark.parametrize("how", ["cut off", "pipe"])
def test_an_image_to_score_on_that_cannot_be_read_is_found_at_the_start(tmp_path, how):
    make_shapes(tmp_path, train=9, val=4)
    picture = next(tmp_path.glob("val2017/*.png"))
    content = picture.read_bytes()
    if how == "pipe":
        picture.unlink()
        os.mkfifo(picture)
    else:
        picture.write_bytes(content[:-100])
    with pytest.raises(
        KdbenchError, match=rf"{picture.name} is (no readable image|a pipe, a sock)"
    ):
        data_of(tmp_path)


def test_a_jpeg_to_score_on_of_another_size_is_found_at_the_start(root, tmp_path):
    """A whole JPEG is not decoded then, but its header is read."""

    def act(content):
        first = content["images"][0]
        first["width"] -= 1
        path = tmp_path / "val2017" / first["file_name"]
        first["file_name"] = f"{path.stem}.jpg"
        Image.open(path).convert("RGB").save(path.with_suffix(".jpg"))

    with pytest.raises(KdbenchError, match=r"\.jpg has 96 x 96 pixels, its annotations say 95 x"):
        data_of(change(root, tmp_path, act, "val2017"))


def test_nothing_to_score_on_is_one_line(root, tmp_path):
    empty = change(root, tmp_path, lambda c: c.update(images=[], annotations=[]), "val2017")
    with pytest.raises(KdbenchError, match="nothing to score on"):
        data_of(empty)


def test_an_epoch_is_every_image_once_and_goes_on_anywhere(root):
    data = data_of(root)
    plan = Plan(data, 3, seed=5)
    steps = [plan(step) for step in range(6)]
    assert [len(step.rows) for step in steps] == [3, 3, 2] * 2
    assert [step.epoch for step in steps] == [1] * 3 + [2] * 3
    rows = [[row for step in steps[i : i + 3] for row in step.rows] for i in (0, 3)]
    assert sorted(rows[0]) == sorted(rows[1]) == list(range(8))
    assert rows[0] != rows[1]
    assert Plan(data, 3, seed=5)(4) == steps[4], "of any step, without those before it"
    assert {data.views.decode(view) for step in steps for view in step.views} > {(48, True)}


def test_boxes_stay_on_their_objects(root):
    """Flipped and scaled: within its box an object has its own colour, beyond it noise."""
    data = data_of(root)
    for shorter, flip in ((64, False), (64, True), (48, True)):
        row = next(i for i, t in enumerate(data.targets) if 1 in t.labels)  # rectangles fill boxes
        pixels = read_picture(data.train_folder, data.train[row])
        image, target = prepared(pixels, data, shorter, flip, data.targets[row])
        assert image.shape == (3, shorter, shorter)
        box = target.boxes[int((target.labels == 1).nonzero()[0])]
        x, y = ((box[:2] + box[2:]) / 2).int().tolist()
        red, green, blue = (image[:, y, x] * torch.tensor(STD) + torch.tensor(MEAN)).tolist()
        assert red > 0.7
        assert max(green, blue) < 0.3


def small(seed: int):
    torch.manual_seed(seed)
    return fasterrcnn_resnet(4, 18, **SMALL)


def reference(student, teacher, kind: str) -> float:
    """The distillation term of R proposals [R, C] in float64, from the papers' formulas."""

    def entropy(logits, temperature):
        probability = (logits / temperature).softmax(1)
        return -(probability * probability.log()).sum(1)

    s, t = student.double(), teacher.double()
    loss = (t.softmax(1) * (t.softmax(1).log() - s.softmax(1).log())).sum(1)
    if kind == "er_kd":
        loss = loss * entropy(t, 4)
    if kind == "ea_kd":
        h = entropy(t, 3)
        loss = loss * (h + h * entropy(s, 3) / math.log(t.shape[1])) / 2
    return float(loss.mean())


@pytest.mark.parametrize("name", ["kd", "er_kd", "ea_kd", "detection/hint", "detection/kd_hint"])
def test_losses_are_the_formulas_on_the_student_s_proposals(root, name):
    data = data_of(root)
    student, teacher = small(0), small(1)
    teacher.requires_grad_(False).eval()
    with torch.no_grad():
        teacher.roi_heads.box_predictor.cls_score.weight.mul_(40)  # of some certainty
    method = build_method(compose_method(name, "task=detection"), 0)
    task = Detection(data, Runtime("cpu"), "fp32")
    task.set_up(method, student, {"teacher": teacher}, 0)
    (batch,) = read(data, 1)
    torch.manual_seed(3)
    losses, sums = losses_and_sums(
        student, method, batch, LiveDetectors({"teacher": teacher}, "fp32").outputs(batch)
    )
    torch.manual_seed(3)
    with torch.no_grad():
        learned = student.learn(batch.images, batch.targets)
        output = teacher.output(batch.images, teacher.maps(batch.images), learned.proposals)
    logits, labels = learned.output.logits, learned.labels
    terms = {key.removeprefix("term/"): float(v) / 2 for key, v in sums.items()}
    label = torch.nn.functional.cross_entropy(logits.double(), labels)
    assert terms["ce"] == pytest.approx(float(label), rel=1e-5)
    assert {"box", "rpn_objectness", "rpn_box"} < terms.keys()
    expected = {}
    if "kd" in name:
        kind = name.removeprefix("detection/").replace("kd_hint", "kd")
        expected["kd"] = reference(logits.detach(), output.logits, kind)
    if "hint" in name:
        maps = [(learned.output.taps[f"p{i}"].double(), output.taps[f"p{i}"]) for i in range(2, 7)]
        expected["hint"] = float(sum((s - t).square().mean() for s, t in maps)) / 5
    for term, value in expected.items():
        assert terms[term] == pytest.approx(value, rel=1e-4), term
    distillation, own_losses = losses.distillation.detach(), losses.label.detach()
    assert float(distillation) == pytest.approx(sum(expected.values()), rel=1e-4)
    own = ("ce", "box", "rpn_objectness", "rpn_box")
    assert float(own_losses) == pytest.approx(sum(terms[key] for key in own), rel=1e-5)
    losses.total().backward()  # and the gradient reaches the backbone
    assert student.backbone.body.conv1.weight.grad.abs().sum() > 0


def test_a_training_pass_is_torchvision_s(root):
    """Losses of `learn` are those of torchvision's own forward pass on the same images."""
    data, network = data_of(root, min_sizes=[64], flip=False), small(0)
    (batch,) = read(data, 1)
    network.transform.image_mean, network.transform.image_std = [0.0] * 3, [1.0] * 3
    network.transform.min_size = (64,)
    torch.manual_seed(0)
    torch.empty(2).uniform_()  # that draws a size for each image
    own = network.learn(batch.images, batch.targets)
    torch.manual_seed(0)
    theirs = network(list(batch.images.tensors), [dict(target) for target in batch.targets])
    for ours, name in {"box": "loss_box_reg", "rpn_objectness": "loss_objectness"}.items():
        torch.testing.assert_close(own.losses[ours], theirs[name], rtol=1e-3, atol=1e-4)


def test_maps_of_every_backbone_have_their_strides(tmp_path):
    network = fasterrcnn_mobilenet_v2(4, **SMALL)
    assert [shape[1] for shape in network.probe().taps.values()] == [16, 8, 4, 2, 1]
    assert network.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    path = tmp_path / "resnet18.pth"
    torch.save({**small(3).backbone.body.state_dict(), "fc.weight": torch.zeros(2, 2)}, path)
    frozen = fasterrcnn_resnet(4, 18, backbone=str(path), **SMALL)
    trained = {n for n, p in frozen.backbone.body.named_parameters() if p.requires_grad}
    assert {name.partition(".")[0] for name in trained} == {"layer2", "layer3", "layer4"}
    assert not [m for m in frozen.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with pytest.raises(KdbenchError, match="is not of a ResNet34"):
        fasterrcnn_resnet(4, 34, backbone=str(path), **SMALL)
    for changes in ({"trainable_stages": 6}, {"proposals": 0}, {"anchor_sizes": [1, 2]}):
        with pytest.raises(ConfigError):
            fasterrcnn_resnet(4, 18, **(SMALL | changes))


def test_average_precision_by_hand(root):
    """One image, two objects of a class; detections of 0.9 (right), 0.8 (wrong), 0.7 (right)."""
    from kdbench.tasks.detection.scores import Found, average_precision

    truth = data_of(root).test
    picture = truth.pictures[0]
    first = truth.boxes[0]._replace(image=picture.id, category=3, bbox=(10.0, 10.0, 20.0, 20.0))
    second = first._replace(id=2, bbox=(50.0, 50.0, 20.0, 20.0))
    truth = truth._replace(boxes=[b._replace(area=400.0, crowd=False) for b in (first, second)])
    boxes = torch.tensor([[10.0, 10, 30, 30], [70, 10, 90, 30], [50, 50, 70, 70]])
    found = [Found(picture.id, boxes, torch.tensor([1, 1, 1]), torch.tensor([0.9, 0.8, 0.7]))]
    # Precision 1 up to recall 0.5 (51 of 101 points), then 2/3 at recall 1 (50 points).
    expected = 100 * (51 + 50 * 2 / 3) / 101
    scores = average_precision(truth, found)
    assert scores.ap50 == pytest.approx(expected)
    assert scores.ap == pytest.approx(expected)
    assert scores.ap_small == pytest.approx(expected)
    assert scores.ap_large is None
    assert average_precision(truth, []).ap == 0


def test_the_rate_follows_detectron2():
    schedule = StepSchedule(100, 8, 0.01, [50, 80], warmup_steps=10, warmup_factor=0.001)
    factors = [schedule.factor(step) for step in (0, 5, 10, 49, 50, 80)]
    assert factors == pytest.approx([0.001, 0.5005, 1, 1, 0.1, 0.01])
    for key, value in (("steps", 0), ("lr", 0.0), ("momentum", -1.0), ("milestones", [3, 2])):
        with pytest.raises(ConfigError):
            StepSchedule(**{**vars(schedule), key: value})
    for changes in ({"milestones": [100]}, {"warmup_steps": 200}):
        with pytest.raises(ConfigError):
            StepSchedule(**{**vars(schedule), **changes})


def the_only(pattern: str) -> Path:
    (folder,) = Path("runs").glob(pattern)
    return folder


def taught_by(teacher: Path) -> list[str]:
    sized = [a.replace("student.", "teacher.fasterrcnn_ResNet18.network.") for a in RUN[6:9]]
    named = ["teacher=fasterrcnn_ResNet18", f"teacher.fasterrcnn_ResNet18.checkpoint={teacher}"]
    return [*named, *sized, "method=er_kd"]


@pytest.mark.slow
def test_teacher_to_student(command, root):
    here = [*RUN, *SHORT, f"dataset.root={root}", "logger=wandb"]
    assert command("train", *here, "seed=1000").code == 0
    teacher = the_only("coco-none-fasterrcnn_ResNet18-ce-s1000-*")
    record = record_at(teacher / "record.json")
    assert record["steps"] == 4
    assert record["protocol"] == "coco-4steps-b2-last"
    assert record["curve"]["step"] == [2, 4]
    assert [row["step"] for row in history(record_of(record), teacher)] == [2, 4]
    assert history(record_of(record), None)[-1]["test/ap"] == round(record["ap_last"], 4)
    assert "is done: AP" in command("train", *here, "seed=1000").out
    assert "teacher" not in command("train", *here, "seed=1000").err
    assert command("train", *here[:-1], *taught_by(teacher)).code == 0
    assert the_only("coco-fasterrcnn_ResNet18-fasterrcnn_ResNet18-er_kd-s0-*")
    shown = command("table", "runs").out
    assert "| method | AP last" in shown or "| AP50" in shown
    assert "er_kd" in shown
    assert len(find_records([Path("runs")])) == 2


@pytest.mark.long
def test_a_taught_student_that_is_stopped_goes_on_to_the_same_bits(command, monkeypatch, root):
    here = [*RUN, *SHORT, f"dataset.root={root}", "runtime.checkpoint_steps=1"]
    assert command("train", *here, "seed=1000").code == 0
    student = [*here, *taught_by(the_only("coco-none-*"))]
    assert command("train", *student).code == 0
    whole = load_file(the_only("coco-f*") / "student.safetensors")
    original, stops = Member.step, []

    def stopped(member, *given):
        original(member, *given)
        if member.state.step == 3 and not stops:
            stops.append(3)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Member, "step", stopped)
    assert command("train", *student, "runs_dir=other").code == 130
    assert "going on after step 3" in command("train", *student, "runs_dir=other").out
    again = load_file(next(Path("other").glob("coco-f*")) / "student.safetensors")
    assert all(torch.equal(again[key], value) for key, value in whole.items())


@pytest.mark.long
def test_a_kill_and_a_divergence_lose_nothing(command, monkeypatch, root):
    here = [*RUN, *SHORT, f"dataset.root={root}", "runtime.checkpoint_steps=1"]
    original = Member.step

    def killed(member, *given):
        if member.state.step == 2:
            raise KeyboardInterrupt
        original(member, *given)

    monkeypatch.setattr(Member, "step", killed)
    assert command("train", *here).code == 130
    monkeypatch.setattr(Member, "step", original)
    assert "going on after step 2" in command("train", *here).out
    folder = the_only("coco-none-*-s0-*")
    resumed = load_file(folder / "student.safetensors")
    assert command("train", *here, "runs_dir=other").code == 0
    (other,) = Path("other").glob("coco-*")
    whole = load_file(other / "student.safetensors")
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())
    result = command("train", *here, "schedule.lr=1e30", "seed=3")
    assert "is not finite; lower schedule.lr" in result.error_line
    failed = the_only("coco-none-*-s3-*")
    assert record_at(failed / "record.json")["status"] == "failed"
    assert list(failed.glob("checkpoint-*")), "the last good one is kept"


def test_a_full_disk_and_a_score_that_is_no_number_are_one_line(command, monkeypatch, root):
    here = [*RUN, *SHORT, f"dataset.root={root}"]

    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(kdbench.training.member, "save_checkpoint", full)
        assert "No space left on device" in command("train", *here).error_line
    folder = the_only("coco-none-*")
    assert record_at(folder / "record.json")["status"] == "failed"
    nothing = Scores(math.nan, *[None] * 5)
    monkeypatch.setattr(kdbench.tasks.detection.task, "evaluate", lambda *given: nothing)
    assert "its test/ap is not finite" in command("train", *here).error_line
    assert record_at(folder / "record.json")["status"] == "failed"


def test_a_teacher_with_another_ap_than_its_passport_is_refused():
    file = TeacherFile("big", Node("x", {}), Path("big.safetensors"), Passport(ap=40.0))
    compare(file, Scores(40.1, *[None] * 5))
    with pytest.raises(KdbenchError, match=r"has an AP of 39\.80, its passport says 40\.00"):
        compare(file, Scores(39.8, *[None] * 5))


def test_a_teacher_of_weights_that_are_not_finite_is_refused(root, tmp_path):
    weights = small(0).state_dict()
    weights["roi_heads.box_predictor.cls_score.bias"][1] = math.inf
    path = tmp_path / "big.safetensors"
    save_file(weights, path)
    target = "kdbench.tasks.detection.networks.fasterrcnn_resnet"
    file = TeacherFile("big", Node(target, {"depth": 18, **SMALL}), path, Passport())
    line = rf"teacher big \({path}\) has weights that are not finite \(roi_heads.*cls_score.bias\)"
    with pytest.raises(KdbenchError, match=line):
        load_teacher(file, data_of(root), Runtime("cpu"), tmp_path, print)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_student_that_cannot_be_scored_is_its_own_failure_where_there_is_one_rank(
    monkeypatch, ranks
):
    """On several, the others wait for this one, and cannot know."""
    students = [Detector.__new__(Detector) for _ in range(2)]  # nothing looks into them
    error = ValueError("no box")

    def evaluate(network, *given):
        if network is students[0]:
            raise error
        return Scores(1.0, *[None] * 5)

    monkeypatch.setattr(kdbench.tasks.detection.task, "evaluate", evaluate)
    runtime = SimpleNamespace(ranks=Ranks(Place(0, ranks)))
    task = SimpleNamespace(runtime=runtime, data=None, precision="fp32")
    if ranks == 1:
        assert Detection.score(task, students) == [error, {"test/ap": 1.0}]
    else:
        with pytest.raises(ValueError, match="no box"):
            Detection.score(task, students)


def heads(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "student.safetensors")


@pytest.mark.long
def test_detectors_train_side_by_side_in_parts_and_in_bfloat16(command, root):
    """Each ends with the bits that it has alone; a sweep, an estimate and a score know them."""
    here = [*RUN, "schedule.steps=2", "schedule.milestones=[]", "schedule.score_steps=2"]
    here += [f"dataset.root={root}", "schedule.micro_batches=2"]
    assert command("train", *here, "seed=1000").code == 0
    teacher = the_only("coco-none-*-s1000-*")
    sized = [a.replace("student.", "teacher.fasterrcnn_ResNet18.network.") for a in RUN[6:9]]
    named = [*here, "teacher=fasterrcnn_ResNet18", *sized, "schedule.precision=bf16"]
    named.append(f"teacher.fasterrcnn_ResNet18.checkpoint={teacher}")
    assert command("train", *named, "method=kd", "runs_dir=alone").code == 0
    sweep = [*named, "hydra/launcher=cohort", "method=ce,kd", "runs_dir=beside"]
    timed = command("estimate", *named, "method=ce,kd", "runs_dir=beside")
    assert "2 runs: 0 done, 0 to resume, 2 to do" in timed.out, timed.err
    assert command("train", "-m", *sweep).code == 0
    alone, taught = next(Path("alone").glob("*-kd-*")), next(Path("beside").glob("*-kd-*"))
    assert alone.name == taught.name
    assert all(torch.equal(heads(taught)[key], value) for key, value in heads(alone).items())
    record = record_at(taught / "record.json")
    assert (record["companions"], record["protocol"]) == (1, "coco-2steps-b2-bf16-last")
    scored = command(
        "evaluate", *RUN[:5], *RUN[6:9], f"dataset.root={root}", f"checkpoint={taught}"
    )
    found = json.loads(scored.out.splitlines()[-1])
    assert found["ap"] == pytest.approx(
        json.loads((taught / "student.passport.json").read_text())["ap"], abs=1e-3
    )
    assert found["n"] == 4


@pytest.mark.long
def test_a_student_learns(command, tmp_path, monkeypatch):
    monkeypatch.setattr("kdbench.system.console.SILENCE", 0.0)
    root = make_shapes(tmp_path / "data", train=48, val=12)
    here = [*RUN, f"dataset.root={root}", "dataset.min_sizes=[64]", "schedule.batch_size=2"]
    steps = ["schedule.steps=56", "schedule.milestones=[50]", "schedule.score_steps=14"]
    told = command("train", *here, *steps)
    assert told.code == 0
    assert "step 30/56 | loss so far " in told.out, "a log is told of what is between the scores"
    record = record_at(the_only("coco-none-*") / "record.json")
    assert record["ap50_last"] > 10
    assert record["ap_last"] > record["curve"]["test/ap"][0]
    assert record["curve"]["train/loss"][-1] < 0.7 * record["curve"]["train/loss"][0]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["runtime.teacher=table"], "no cache of teacher outputs"),
        (["runtime.compile=on"], "compiles nothing"),
        (["method=dkd"], "method dkd is for task=classification, not for task=detection"),
        (["method=kd"], "method kd reads 1 teacher(s), not 0"),
        (["method=detection/hint", "method@method.inner=dkd"], "method.inner"),
        (["student.backbone=nowhere"], "no file nowhere: set student.backbone=FILE"),
        (["dataset.root=nowhere"], "no annotations nowhere/"),
        (["schedule.warmup_factor=0"], "schedule.warmup_factor must be above 0, not 0.0"),
        (["schedule.precision=fp16"], "schedule.precision=fp16 is of classifiers: set it to bf16"),
    ],
)
def test_a_mistake_is_one_line(command, root, arguments, line):
    result = command("train", *RUN, f"dataset.root={root}", *arguments)
    assert line in result.error_line


SMOKE = [  # as results/smoke/detection/README.md has it
    *("task=detection", "runtime=cpu", "runtime.threads=1", "dataset.max_size=64"),
    *("dataset.min_sizes=[64]", "schedule.batch_size=4", "schedule.lr=0.003"),
    *("schedule.warmup_steps=20", "schedule.score_steps=40"),
    *(f"student.{key}={value}".replace(" ", "") for key, value in SMALL.items()),
]


def test_committed_runs_are_found_again():
    folder = ROOT / "results" / "smoke" / "detection"
    teacher = ["teacher=fasterrcnn_ResNet18"]
    for key, value in SMALL.items():
        teacher.append(f"teacher.fasterrcnn_ResNet18.network.{key}={value}".replace(" ", ""))
    student = ["student=fasterrcnn_MobileNetV2", "schedule.steps=40", "schedule.milestones=[30]"]
    commands = {
        "ce-s1000": ["schedule.steps=120", "schedule.milestones=[100]", "seed=1000"],
        "ce-s0": student,
        "ea_kd-s0": [*student, *teacher, "method=ea_kd"],
    }
    for record in find_records([folder]):
        (own,) = (words for key, words in commands.items() if f"-{key}-" in record.run_id)
        weights = {teacher.name: teacher.sha256 for teacher in record.teachers}
        found = identify(compose(*SMOKE, *own), "coco", record.data.sha256, weights)
        assert found.run_id == record.run_id


def test_a_detector_s_record_is_checked():
    with pytest.raises(ConfigError, match=r"config.task='x' is not one of"):
        record_of(make_record("kd") | {"config": {**make_record("kd")["config"], "task": "x"}})


def test_without_pycocotools_it_is_one_line(command, monkeypatch, root):
    monkeypatch.setattr("kdbench.tasks.detection.scores.find_spec", lambda name: None)
    result = command("train", *RUN, f"dataset.root={root}")
    assert "pip install 'kdbench[detection]'" in result.error_line


def test_the_task_is_part_of_no_classifier_s_name():
    config = compose("task=classification")
    assert config == compose()
    assert "task" not in config.spelt()
    assert identify(config, "digits", "x", {}).hash == identify(compose(), "digits", "x", {}).hash
