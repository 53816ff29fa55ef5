"""Teachers that are trained on the way, and several of them."""

from pathlib import Path

from support.records import record_at
from support.runs import SMALL, runs, same, weights


def test_the_self_teacher_is_trained_first_and_found_again(command):
    for seed in (0, 1):
        result = command(
            "train",
            *SMALL,
            "method=kd",
            "teacher=self",
            "teacher.self.allow_chance=true",
            f"seed={seed}",
        )
        assert result.code == 0, result.err
    assert sorted(runs()) == [
        "synthetic-none-resnet8-ce-s1000",
        "synthetic-self_resnet8-resnet8-kd-s0",
        "synthetic-self_resnet8-resnet8-kd-s1",
    ]
    teacher = record_at(runs()["synthetic-none-resnet8-ce-s1000"] / "record.json")
    for seed in (0, 1):
        record = record_at(runs()[f"synthetic-self_resnet8-resnet8-kd-s{seed}"] / "record.json")
        assert record["teachers"][0]["sha256"] == teacher["student_sha256"]
    assert "is done" in result.out
    before = weights(runs()["synthetic-none-resnet8-ce-s1000"])
    Path("alone").mkdir()
    command("train", *SMALL, "method=ce", "seed=1000", "runs_dir=alone")
    assert same(before, weights(runs("alone")["synthetic-none-resnet8-ce-s1000"]))
    assert [path.name for path in Path("alone").glob("synthetic-*")] == [
        runs()["synthetic-none-resnet8-ce-s1000"].name
    ]


def test_teachers_of_other_architectures_and_of_other_seeds(command):
    for student, seed in (("resnet14", 0), ("wrn_16_1", 0), ("resnet14", 1)):
        assert command("train", *SMALL, f"student={student}", f"seed={seed}").code == 0
    found = {name: folder.name for name, folder in runs().items()}
    mixed = [
        "teacher=[resnet14,wrn_16_1]",
        f"teacher.resnet14.checkpoint={found['synthetic-none-resnet14-ce-s0']}",
        "teacher.resnet14.allow_chance=true",
        f"teacher.wrn_16_1.checkpoint={found['synthetic-none-wrn_16_1-ce-s0']}",
        "teacher.wrn_16_1.allow_chance=true",
    ]
    seeds = [
        "teacher=resnet14",
        f"teacher.resnet14.checkpoint={found['synthetic-none-resnet14-ce-s0']}",
        "teacher.resnet14.allow_chance=true",
        "+student@teacher.again.network=resnet14",
        f"+teacher.again.checkpoint={found['synthetic-none-resnet14-ce-s1']}",
        "+teacher.again.allow_chance=true",
    ]
    for method, teachers in (("ca_mkd", mixed), ("aekd", mixed), ("de_mkd", seeds)):
        result = command("train", *SMALL, f"method={method}", *teachers)
        assert result.code == 0, result.err
    names = [f"synthetic-resnet14+wrn_16_1-resnet8-{method}-s0" for method in ("ca_mkd", "aekd")]
    assert {*names, "synthetic-resnet14+again_resnet14-resnet8-de_mkd-s0"} <= set(runs())
    record = record_at(runs()[names[0]] / "record.json")
    assert [teacher["name"] for teacher in record["teachers"]] == ["resnet14", "wrn_16_1"]
