"""The main job end to end, on synthetic images."""

import json
from pathlib import Path

import pytest
import torch

from kdbench.records.checkpoint import checkpoint_paths
from support.records import record_at
from support.runs import CE, SMALL, interrupt_at, runs, same, weights

KD = [*SMALL, "method=kd", "student=resnet8", "teacher=resnet14"]


@pytest.fixture
def teacher(command) -> str:
    """The name of a trained teacher's run."""
    assert command("train", *SMALL, "student=resnet14").code == 0
    return "synthetic-none-resnet14-ce-s0"


def test_a_run_leaves_weights_metrics_and_record(command):
    result = command("train", *CE, "seed=3")
    assert result.code == 0, result.err
    folder = runs()["synthetic-none-resnet8-ce-s3"]
    record = record_at(folder / "record.json")
    assert record["status"] == "done"
    assert record["epochs"] == 3
    assert record["data"]["train"] == 40
    assert record["config"]["schedule"]["momentum"] == 0.9
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["lr"] for row in rows] == pytest.approx([0.05, 0.05, 0.005])
    assert record["top1_last"] == rows[-1]["test/top1"]
    assert record["top1_best_on_test"] == max(row["test/top1"] for row in rows)
    assert record["protocol"] == "synthetic-3ep-b16-last"
    assert record["seconds"] >= record["seconds_share"] >= 0
    assert record["cpu_seconds"] > 0
    assert record["gpu_seconds"] is None
    assert record["peak_memory_mb"] > 50, "torch alone takes more"
    assert 0 <= record["ece_last"] <= 100
    assert record["agreement"] == {}, "it has no teacher"
    assert not checkpoint_paths(folder), "a finished run needs no checkpoints"


def test_training_learns(command):
    command("train", *CE, "dataset.num_train=200", "schedule.epochs=6")
    record = record_at(next(iter(runs().values())) / "record.json")
    assert record["top1_last"] >= 3 * 100 / 10, "chance is 10"
    assert record["curve"]["train/loss"][-1] < record["curve"]["train/loss"][0]


def test_the_same_command_finds_the_done_run(command):
    command("train", *CE)
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.is_file()}
    result = command("train", *CE)
    assert "is done: top-1" in result.out
    assert before == {
        path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.is_file()
    }


def test_same_seed_same_bits_another_seed_others(command):
    for where, seed in (("a", 0), ("b", 0), ("c", 1)):
        command("train", *CE, f"runs_dir={where}", f"seed={seed}")
    first, again, other = (weights(next(iter(runs(where).values()))) for where in "abc")
    assert same(first, again)
    assert not same(first, other)


def test_a_trained_run_is_a_teacher_at_once(command, teacher):
    result = command(
        "train", *KD, f"teacher.resnet14.checkpoint={teacher}", "teacher.resnet14.allow_chance=true"
    )
    assert result.code == 0, result.err
    record = record_at(runs()["synthetic-resnet14-resnet8-kd-s0"] / "record.json")
    assert record["teachers"][0]["source"].startswith("kdbench run synthetic-none-resnet14-ce-s0")
    passport = json.loads((runs()[teacher] / "student.passport.json").read_text())
    assert record["teachers"][0]["sha256"] == passport["sha256"]
    assert record["agreement"].keys() == {"resnet14"}
    assert 0 <= record["agreement"]["resnet14"] <= 100
    assert not any(Path("runs").glob("*/.writable"))


def test_a_foreign_network_teaches_under_its_own_name(command):
    foreign = [
        "teacher=timm",
        "teacher.timm.allow_chance=true",
        "teacher.timm.network.model=resnet10t",
    ]
    assert command("train", *SMALL, "student=timm", "student.model=resnet10t").code == 0
    checkpoint = "teacher.timm.checkpoint=synthetic-none-resnet10t-ce-s0"
    result = command("train", *SMALL, "method=kd", "student=resnet8", *foreign, checkpoint)
    assert result.code == 0, result.err
    record = record_at(runs()["synthetic-timm_resnet10t-resnet8-kd-s0"] / "record.json")
    assert record["teachers"][0]["name"] == "timm_resnet10t"


def test_ce_is_the_same_run_beside_any_teacher(command, teacher):
    command("train", *CE)
    named = [
        "teacher=resnet14",
        f"teacher.resnet14.checkpoint={teacher}",
        "teacher.resnet14.allow_chance=true",
    ]
    assert "is done" in command("train", *CE, *named).out


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(2, id="inside"),
        pytest.param(3, id="end of epoch", marks=pytest.mark.long),
        pytest.param(7, id="last epoch"),
    ],
)
@pytest.mark.parametrize(
    "arguments", [pytest.param(CE, id="ce", marks=pytest.mark.long), pytest.param(KD, id="kd")]
)
def test_ctrl_c_leaves_a_run_that_ends_with_the_same_bits(
    command, teacher, monkeypatch, arguments, step
):
    named = [
        f"teacher.resnet14.checkpoint={Path('runs', runs()[teacher].name)}",
        "teacher.resnet14.allow_chance=true",
    ]
    arguments = arguments + (named if arguments is KD else [])
    command("train", *arguments, "runs_dir=undisturbed")
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        result = command("train", *arguments, "runs_dir=stopped")
    assert result.code == 130
    assert "the same command goes on" in result.error_line
    assert command("train", *arguments, "runs_dir=stopped").code == 0
    one, two = (next(iter(runs(w).values())) for w in ("undisturbed", "stopped"))
    assert same(weights(one), weights(two))
    first, second = (record_at(folder / "record.json") for folder in (one, two))
    assert first["curve"] == second["curve"]
    assert first["run_id"] == second["run_id"]


def test_a_damaged_checkpoint_is_not_believed(command, monkeypatch):
    command("train", *CE, "runs_dir=undisturbed")
    with monkeypatch.context() as patch:
        interrupt_at(8, patch)
        command("train", *CE)
    folder = next(iter(runs().values()))
    newest = checkpoint_paths(folder)[-1]
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1  # one flipped bit
    newest.write_bytes(content)
    result = command("train", *CE)
    assert result.code == 0
    assert "is damaged and is not used" in result.out
    assert same(weights(folder), weights(next(iter(runs("undisturbed").values()))))


def test_divergence_is_recorded_and_loses_nothing(command):
    result = command("train", *CE, "schedule.lr=1e30", "schedule.epochs=3")
    assert result.code == 1
    assert "diverged in epoch 1" in result.error_line
    record = record_at(next(iter(runs().values())) / "record.json")
    assert record["status"] == "failed"
    assert "diverged" in record["error"]


def test_a_sweep_runs_every_cell_and_reports_what_fails(command):
    result = command("train", "-m", *CE, "seed=0,1", "schedule.lr=0.05,1e30")
    assert result.code == 1
    statuses = [record_at(f / "record.json")["status"] for f in Path("runs").glob("*-s*")]
    assert sorted(statuses) == ["done", "done", "failed", "failed"]
    assert result.err.count("diverged in epoch 1") == 4, "at once, and again at the end"


def test_val_split_is_scored_beside_the_test_set(command):
    command("train", *CE, "dataset.val_split=10")
    record = record_at(next(iter(runs().values())) / "record.json")
    assert record["data"]["train"] == 30
    assert 0 <= record["top1_val_last"] <= 100


def test_evaluate_agrees_with_the_record(command):
    command("train", *CE)
    folder = next(iter(runs().values()))
    result = command("evaluate", *SMALL[:3], "student=resnet8", f"checkpoint={folder}")
    scores = json.loads(result.out.splitlines()[-1])
    record = record_at(folder / "record.json")
    assert scores["top1"] == pytest.approx(record["top1_last"], abs=1e-3)
    assert scores["loss"] == pytest.approx(record["loss_last"], abs=1e-5)
    assert scores["n"] == 20
    assert scores.keys() == {"top1", "top5", "loss", "n"}


def test_a_table_of_the_runs(command):
    command("train", "-m", *CE, "seed=0,1")
    result = command("table", "runs")
    (line,) = [row for row in result.out.splitlines() if row.startswith("| ce")]
    tops = [record_at(folder / "record.json")["top1_last"] for folder in runs().values()]
    mean, std = torch.tensor(tops).mean(), torch.tensor(tops).std()
    assert f" {mean:.2f} ± {std:.2f} (2) " in line
    command("train", *CE, "schedule.lr=0.1")
    mixed = command("table", "runs")
    rows = [row for row in mixed.out.splitlines() if row.startswith("| ce")]
    assert len(rows) == 2, "one for each learning rate"
    assert any("lr 0.1" in row for row in rows)
