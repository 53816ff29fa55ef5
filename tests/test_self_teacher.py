"""A teacher that is trained on the way."""

from pathlib import Path

from kdbench.record import read_record
from test_train import SMALL, runs, same, weights


def test_the_self_teacher_is_trained_first_and_found_again(command):
    for seed in (0, 1):
        result = command("train", *SMALL, "method=kd", "teacher=self", f"seed={seed}")
        assert result.code == 0, result.err
    assert sorted(runs()) == [
        "synthetic-none-resnet8-ce-s1000",
        "synthetic-self_resnet8-resnet8-kd-s0",
        "synthetic-self_resnet8-resnet8-kd-s1",
    ]
    teacher = read_record(runs()["synthetic-none-resnet8-ce-s1000"] / "record.json")
    for seed in (0, 1):
        record = read_record(runs()[f"synthetic-self_resnet8-resnet8-kd-s{seed}"] / "record.json")
        assert record["teachers"][0]["sha256"] == teacher["student_sha256"]
    assert "is done" in result.out
    before = weights(runs()["synthetic-none-resnet8-ce-s1000"])
    Path("alone").mkdir()
    command("train", *SMALL, "method=ce", "seed=1000", "runs_dir=alone")
    assert same(before, weights(runs("alone")["synthetic-none-resnet8-ce-s1000"]))
    assert [path.name for path in Path("alone").glob("synthetic-*")] == [
        runs()["synthetic-none-resnet8-ce-s1000"].name
    ]
