"""docs/scaling.md says what `benchmarks.scaling` computes, and that is plain arithmetic."""

import json

import pytest

from benchmarks import scaling
from support.commands import ROOT

FOUND = json.loads(scaling.FILE.read_text())
RESNETS = "ResNet34 -> ResNet18"


def test_every_table_of_the_page_is_computed():
    page = (ROOT / "docs" / "scaling.md").read_text()
    computed = f"{scaling.measured(FOUND)}\n\n{scaling.predicted(FOUND)}".split("\n\n")
    assert len(computed) == 5
    for table in computed:
        assert table in page, "run python -m benchmarks.scaling"


def test_a_gpu_of_this_cores_speed_trains_as_this_core(monkeypatch):
    one = FOUND["pairs"][RESNETS]
    reached = one["teacher_gflop"] * 1e12 / one["teacher_cpu_ms"]
    monkeypatch.setitem(scaling.PRECISIONS, "fp32", (2 * reached, 0.5))
    cpu_ms = one["teacher_cpu_ms"] + 4 * one["student_cpu_ms"]
    assert scaling.gpu_rate(FOUND, RESNETS, 4, "fp32") == pytest.approx(1000 / cpu_ms)


def test_hours_go_by_the_slowest_resource_and_the_last_gpu(monkeypatch):
    lone = [scaling.cohort_hours(FOUND, pair, 1, "bf16", "folder") for pair in scaling.PAIRS]
    monkeypatch.setattr(scaling, "CORES", 1)
    slow = scaling.cohort_hours(FOUND, RESNETS, 1, "bf16", "folder")
    images = scaling.EPOCHS * (scaling.TRAIN + scaling.TEST)
    assert slow == pytest.approx(images / FOUND["loader"]["folder"] / 3600)
    monkeypatch.undo()
    assert scaling.table_hours(FOUND, 1, "bf16", 1, "folder") == pytest.approx(48 * sum(lone))
    assert scaling.table_hours(FOUND, 96, "bf16", 1, "folder") == pytest.approx(max(lone))


def test_a_step_waits_for_sums_that_its_backward_pass_is_too_short_for():
    pair = FOUND["pairs"][RESNETS]
    added = scaling.reduce_ms(FOUND, RESNETS, 64, 1e9)
    backward = 2 / 3 * pair["student_cpu_ms"] * 8 / scaling.speed_up(FOUND, "bf16")
    assert scaling.waited_ms(FOUND, RESNETS, 64, 1e9) == pytest.approx(added - backward)
    fast = scaling.waited_ms(FOUND, RESNETS, 64, 1e12)
    assert fast == pytest.approx((25 << 20) * 2 * 63 / 64 / 1e12 * 1000), "its last message"


def test_a_pair_is_measured(monkeypatch):
    for name, value in {"BATCH": 1, "STEPS": 1, "SIDE": 64}.items():
        monkeypatch.setattr(scaling, name, value)
    small = scaling.measure_pair(*scaling.PAIRS[RESNETS])
    large = FOUND["pairs"][RESNETS]
    assert small["parameters"] == large["parameters"] == 11_689_512
    assert large["student_gflop"] / 3 == pytest.approx(2 * 1.81407, rel=1e-3), "conf/student"
    assert small["teacher_gflop"] < large["teacher_gflop"] / 10
    assert small["student_cpu_ms"] > 0
