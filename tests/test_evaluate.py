"""Real weights on the real test set score what they are known to score."""

import json

import pytest

from support.commands import SHARED


@pytest.mark.slow
def test_resnet32_on_cifar100(command, cifar100_root):
    checkpoint = SHARED / "weights" / "resnet32_cifar100_69.51.pth"
    if not checkpoint.is_file():
        pytest.skip(f"no weights at {checkpoint}")
    data = ["dataset=cifar100", f"dataset.root={cifar100_root}"]
    result = command("evaluate", "student=resnet32", f"checkpoint={checkpoint}", *data)
    scores = json.loads(result.out.splitlines()[-1])
    assert scores["top1"] == pytest.approx(69.51, abs=0.02)  # two images: libraries round apart
    assert scores["n"] == 10_000
