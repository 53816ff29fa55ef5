"""`make bench` runs, in small, and ends with the one JSON line that it promises."""

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks import decoding, streamed, timm_step
from kdbench.system.precision import notices
from support.commands import ROOT
from support.folders import real

PROMISED = ("input_pipeline_ratio", "cohort8_cost_per_method", "table_run_cost", "live_run_cost")


@pytest.fixture(scope="module")
def output() -> list[str]:
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--tiny"],
        cwd=ROOT,
        # One thread, so that other work on the machine does not stretch it; no GPU, for the same.
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()


@pytest.mark.long
def test_the_last_line_is_json_with_the_promised_keys(output):
    found = json.loads(output[-1])
    assert all(found[key] > 0 for key in PROMISED)
    assert found["gpu"] is None
    assert {"hardware", "versions", "load", "date", "commit"} <= found.keys()
    names = ["lone_live", "lone_table", *(f"cohort{k}" for k in (1, 2, 4, 8)), "cohort8_table"]
    if not notices("bf16", torch.device("cpu")):
        names += ["live_bf16", "table_bf16"]
    for name in names:
        spread = found["steps"]["ratios"][name]
        assert spread["min"] <= spread["q1"] <= spread["median"] <= spread["q3"] <= spread["max"]
        assert spread["n"] >= 3


@pytest.mark.long
def test_the_same_thing_is_timed_on_both_sides(output):
    losses = json.loads(output[-1])["steps"]["first_losses"]
    assert losses["lone_live"] == pytest.approx(losses["plain"], rel=1e-3)
    assert losses["lone_table"] == pytest.approx(losses["plain"], rel=1e-3)


@pytest.mark.long
def test_people_can_read_it_too(output):
    text = "\n".join(output[:-1])
    for word in ("input pipeline", "cohort of 8 methods", "filled table", "no GPU", "quartiles"):
        assert word in text


def test_streamed_images_are_compared_out_of_every_layout(tmp_path):
    root = real("imagenette-mini")
    found = streamed.measure(root, tmp_path, size=32, batches=1, rounds=3)
    assert found["ratios"].keys() == {"folder", "tar", "parquet", "pixels"}
    for one in (*found["ratios"].values(), *found["images_per_cpu_second"].values()):
        assert 0 < one["min"] <= one["median"] <= one["max"]
    assert all(value > 0 for value in found["read_ms"].values())


def test_decoding_is_measured_both_ways_at_each_number():
    assert list(decoding.ways(6)) == [(1, 1), (1, 2), (1, 4), (2, 1), (4, 1)]
    assert list(decoding.ways(1)) == [(1, 1)]


def test_a_step_of_timm_s_loop_is_measured_beside_ours(monkeypatch, capsys):
    small = ["--model", "test_vit", "--side", "160", "--batch", "2", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["timm_step", *small])
    timm_step.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["ratio"]["median"] > 0
    assert found["model"] == "test_vit"


@pytest.mark.parametrize(
    ("question", "keys"),
    [
        ("fused_convolutions", {"students", "layer", "pass", "way", "ms", "error"}),
        pytest.param(
            *("fused_steps", {"methods", "answers", "fused", "ms_run_step", "peak_memory_mb"}),
            marks=pytest.mark.long,
        ),
        pytest.param("fused_runs", {"method", "apart"}, marks=pytest.mark.long),
    ],
)
def test_the_questions_for_a_gpu_are_ready_to_run(question, keys, tmp_path):
    """Small and on the processor, with a file that has whole rows at any time."""
    file = tmp_path / "found.json"
    command = [sys.executable, "-m", f"benchmarks.{question}", str(file), "--tiny"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    found = json.loads(file.read_text())
    assert {"hardware", "versions", "commit", "date"} <= found.keys()
    assert keys <= found["rows"][0].keys()
    assert all((row.get("error") or 0) < 1e-5 for row in found["rows"])
    assert all(row.get("apart", 0) < 1e-4 for row in found["rows"])
