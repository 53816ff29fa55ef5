"""SimKD: its map loss, its extra parameters, and a run from start to finish."""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdbench.methods.simkd import SimKD, map_mse
from kdbench.networks.heads import projector
from support.records import record_at
from support.zoo import constructor


def maps(seed: int, channels: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, channels, side, side, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("student_side", "teacher_side"), [(4, 4), (2, 4), (4, 2)])
def test_the_larger_map_is_pooled(student_side, teacher_side):
    student, teacher = maps(0, 5, student_side), maps(1, 5, teacher_side)
    side = min(student_side, teacher_side)

    def cell(feature: torch.Tensor, row: int, column: int) -> torch.Tensor:
        size = feature.shape[-1] // side
        rows, columns = (slice(i * size, (i + 1) * size) for i in (row, column))
        return feature[:, :, rows, columns].sum(dim=(2, 3)) / size**2

    positions = [(row, column) for row in range(side) for column in range(side)]
    total = sum((cell(student, *p) - cell(teacher, *p)).square().sum(dim=1) for p in positions)
    torch.testing.assert_close(map_mse(student, teacher), total / (5 * side**2))


@pytest.mark.parametrize(
    ("teacher", "student", "counts"),
    [
        ("wrn_40_2", "wrn_16_2", (53_760, 17_792, 6_720)),
        ("wrn_40_2", "wrn_40_1", (49_664, 15_744, 5_696)),
        ("resnet56", "resnet20", (13_568, 4_544, 1_760)),
        ("resnet32x4", "resnet8x4", (214_016, 70_400, 26_240)),
        ("resnet32x4", "ShuffleV2", (240_640, 83_712, 32_896)),
        ("vgg13", "MobileNetV2", (763_904, 235_008, 81_152)),
        ("ResNet50", "vgg8", (12_066_816, 3_676_160, 1_250_304)),
    ],
)
def test_extra_parameters_are_the_published_counts(teacher, student, counts):
    """Of the pairs that SimKD's code gives, by factor 2, 4 and 8."""
    stage = {"vgg8": "stage4", "MobileNetV2": "stage4"}.get(student, "stage3")
    with torch.no_grad(), torch.device("cpu"):
        image = torch.zeros(1, 3, 32, 32)
        inputs = constructor(student)(num_classes=100).eval()(image).taps[stage].shape[1]
        outputs = constructor(teacher)(num_classes=100).eval()(image).taps["map"].shape[1]
    for factor, count in zip((2, 4, 8), counts, strict=True):
        made = projector(inputs, outputs, factor)
        assert sum(parameter.numel() for parameter in made.parameters()) == count


SMALL = [
    "dataset=synthetic",
    "dataset.num_train=40",
    "dataset.num_test=20",
    "schedule.batch_size=16",
    "schedule.epochs=2",
    "schedule.milestones=[1]",
    "runtime=cpu",
    "runtime.threads=1",
]
SIMKD = [*SMALL, "method=simkd", "student=resnet8", "teacher=resnet14"]


def folder(where: str) -> Path:
    (found,) = Path(where).glob("*-simkd-*")
    return found


def test_a_run_is_resumed_exactly_and_its_file_is_named_for_what_it_is(command, monkeypatch):
    assert command("train", *SMALL, "student=resnet14", "runs_dir=teachers").code == 0
    (teacher,) = Path("teachers").glob("*-ce-*")
    arguments = [
        *SIMKD,
        f"teacher.resnet14.checkpoint={teacher}",
        "teacher.resnet14.allow_chance=true",
    ]
    assert command("train", *arguments, "runs_dir=undisturbed").code == 0
    forward, steps = SimKD.forward, iter(range(1, 100))

    def stopped(self, *outputs):
        if next(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(self, *outputs)

    with monkeypatch.context() as patch:
        patch.setattr(SimKD, "forward", stopped)
        assert command("train", *arguments, "runs_dir=stopped").code == 130
    assert command("train", *arguments, "runs_dir=stopped").code == 0
    one, two = (folder(where) for where in ("undisturbed", "stopped"))
    weights = [load_file(run / "student.safetensors") for run in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    records = [record_at(run / "record.json") for run in (one, two)]
    assert records[0]["curve"] == records[1]["curve"]
    assert records[0]["status"] == "done"
    teachers = load_file(teacher / "student.safetensors")
    assert torch.equal(weights[0]["teacher_weight"], teachers["fc.weight"]), (
        "the classifier is the teacher's"
    )

    line = command("evaluate", *SMALL[:3], "student=resnet8", f"checkpoint={one}").error_line
    assert "is no resnet8 alone but what a method such as simkd made of one" in line
