"""The engine against the loop that anyone would write."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torchvision.transforms import functional as T

import kdbench.training.member
from kdbench.assembly.build import build_student
from kdbench.assembly.make import make
from kdbench.data.augmentation.views import epoch_plan
from kdbench.networks.resnet import resnet14
from kdbench.records.weights import load_weights
from kdbench.seeds import derive

DATA = {"num_classes": 10, "num_train": 40, "num_test": 20, "image_size": 32, "seed": 0}
RUN = [
    *(f"dataset.{key}={value}" for key, value in DATA.items()),
    "dataset=synthetic",
    "dataset.flip=true",
    "schedule.batch_size=16",
    "schedule.epochs=3",
    "schedule.milestones=[1,2]",
    "schedule.lr=0.02",
    "schedule.warmup_epochs=1",
    "runtime=cpu",
    "runtime.threads=1",
    "runtime.channels_last=false",
]
MEAN, STD = [0.5] * 3, [0.25] * 3


def plain_loop(teacher: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """KD in plain PyTorch: torchvision's transforms, torch's KL, SGD and MultiStepLR."""
    node = {"_target_": "kdbench.data.memory.synthetic.synthetic", **DATA, "mean": MEAN, "std": STD}
    data = make({**node, "pad": 4, "flip": True, "val_split": 0})
    student = build_student({"_target_": "kdbench.networks.resnet.resnet8"}, data, seed)
    sgd = torch.optim.SGD(student.parameters(), 0.02, momentum=0.9, weight_decay=5e-4)
    steps = torch.optim.lr_scheduler.MultiStepLR(sgd, [1, 2])
    for epoch in (1, 2, 3):
        order, view = epoch_plan(40, data.views, derive(seed, "data"), epoch)
        rows, columns, flips = data.views.decode(view)
        for number, chunk in enumerate(order.split(16), 1):
            if epoch == 1:
                sgd.param_groups[0]["lr"] = 0.02 * number / 3
            images = []
            for i in chunk.tolist():
                picture = T.pad(T.to_pil_image(data.train.images[i]), 4)
                picture = T.crop(picture, int(rows[i]), int(columns[i]), 32, 32)
                picture = T.hflip(picture) if flips[i] else picture
                images.append(T.normalize(T.to_tensor(picture), MEAN, STD))
            batch, labels = torch.stack(images), data.train.labels[chunk]
            with torch.no_grad():
                targets = (teacher(batch).logits / 4).softmax(1)
            logits = student(batch).logits
            soft = F.kl_div((logits / 4).log_softmax(1), targets, reduction="batchmean")
            loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * 16 * soft
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        steps.step()
    return student.state_dict()


def test_a_kd_run_ends_with_the_weights_of_a_plain_loop(command):
    assert command("train", *RUN, "student=resnet14", "seed=4").code == 0
    (folder,) = Path("runs").glob("synthetic-none-resnet14-ce-s4-*")
    named = [
        "teacher=resnet14",
        f"teacher.resnet14.checkpoint={folder}",
        "teacher.resnet14.allow_chance=true",
    ]
    assert command("train", *RUN, "method=kd", "student=resnet8", *named, "seed=7").code == 0
    (done,) = Path("runs").glob("synthetic-resnet14-resnet8-kd-s7-*")
    teacher = resnet14(num_classes=10).eval()
    load_weights(teacher, folder / "student.safetensors", "resnet14")
    torch.set_num_threads(1)
    expected, found = plain_loop(teacher, seed=7), load_file(done / "student.safetensors")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_an_epoch_is_every_image_once_and_the_last_batch_is_short(command, monkeypatch):
    batches = []
    original = kdbench.training.member.train_step

    def watched(student, method, teachers, optimizer, batch, generator, losses_of):
        batches.append(batch)
        return original(student, method, teachers, optimizer, batch, generator, losses_of)

    monkeypatch.setattr(kdbench.training.member, "train_step", watched)
    assert command("train", *RUN, "student=resnet8").code == 0
    assert [len(batch.labels) for batch in batches] == [16, 16, 8] * 3
    assert [batch.epoch.item() for batch in batches] == [1.0] * 3 + [2.0] * 3 + [3.0] * 3
    epochs = [torch.cat([b.index for b in batches[i : i + 3]]) for i in (0, 3, 6)]
    assert all(torch.equal(epoch.sort().values, torch.arange(40)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_methods_of_one_seed_see_the_same_batches(command, monkeypatch, seed):
    seen = {}
    original = kdbench.training.member.train_step

    def watched(student, method, teachers, optimizer, batch, generator, losses_of):
        if type(method).__name__ not in seen:
            first = next(student.parameters()).detach().clone()
            seen[type(method).__name__] = (batch.images.clone(), first)
        return original(student, method, teachers, optimizer, batch, generator, losses_of)

    command("train", *RUN, "student=resnet14", f"seed={seed}")
    (folder,) = Path("runs").glob("synthetic-none-resnet14-*")
    named = [
        "teacher=resnet14",
        f"teacher.resnet14.checkpoint={folder}",
        "teacher.resnet14.allow_chance=true",
        f"seed={seed}",
    ]
    monkeypatch.setattr(kdbench.training.member, "train_step", watched)
    result = command("train", "-m", *RUN, "method=ce,kd,dkd", "student=resnet8", *named)
    assert result.code == 0, result.err
    assert seen.keys() == {"CE", "KD", "DKD"}
    for images, weights in seen.values():
        assert torch.equal(images, seen["CE"][0])
        assert torch.equal(weights, seen["CE"][1])
