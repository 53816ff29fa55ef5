"""Weights & Biases mirrors a run and never endangers it."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import wandb

from kdbench.errors import KdbenchError
from kdbench.tracking.run_logger import rows_of
from kdbench.tracking.sending import sync
from kdbench.tracking.wandb_mirror import Mirror, Target
from support import wandb_files
from support.records import record_at

RUN = [
    "dataset=synthetic",
    "dataset.num_train=40",
    "dataset.num_test=20",
    "student=resnet8",
    "runtime=cpu",
    "logger=wandb",
]


def test_offline_run_holds_all_of_the_run(command):
    assert command("train", *RUN).code == 0
    folder = next(Path("runs").glob("*-s0-*"))
    entries = wandb_files.written(folder)
    record = record_at(folder / "record.json")
    run = next(entry.run for entry in entries if entry.HasField("run"))
    assert (run.run_id, run.run_group, run.job_type) == (record["run_id"], record["cell"], "train")
    assert set(run.tags) == {"synthetic", "none_resnet8", "ce", record["protocol"]}
    config = wandb_files.config(entries)
    assert {key: config[key] for key in record["config"]} == record["config"]
    assert (config["hash"], config["teachers"]) == (record["hash"], {})
    metrics = (folder / "metrics.jsonl").read_text().splitlines()
    assert wandb_files.history(entries) == [json.loads(line) for line in metrics]
    summary = wandb_files.summary(entries)
    for key in ("top1_last", "top1_last5", "ece_last", "seconds_share", "student_sha256"):
        assert summary[key] == record[key]
    (model,) = [entry.artifact for entry in entries if entry.HasField("artifact")]
    assert (model.type, model.name) == ("model", record["run_id"])
    files = {Path(entry.local_path) for entry in model.manifest.contents}
    names = ("student.safetensors", "student.passport.json")
    assert files == {folder.resolve() / name for name in names}


@pytest.mark.parametrize("broken", ["init", "log"])
def test_a_failure_of_wandb_is_said_once_and_stops_nothing(command, monkeypatch, broken):
    def fail(*args, **kwargs):
        raise wandb.errors.CommError("service is gone")

    monkeypatch.setattr(*((wandb, "init") if broken == "init" else (wandb.Run, "log")), fail)
    result = command("train", *RUN)
    assert result.code == 0
    assert result.out.count("Weights & Biases failed") == 1
    assert len(next(Path("runs").glob("*-s0-*/metrics.jsonl")).read_text().splitlines()) == 2


def kill_service():
    """Kill this process's own W&B service, and take note of its end as W&B then does not."""
    for process in [found for found in gc.get_objects() if type(found) is subprocess.Popen]:
        if process.poll() is None and "wandb-core" in str(process.args):
            process.kill()
            process.wait()


def test_the_service_may_die_while_a_run_trains(command, monkeypatch):
    log = Mirror.epoch

    def log_and_kill(mirror, row):
        log(mirror, row)
        kill_service()

    monkeypatch.setattr(Mirror, "epoch", log_and_kill)
    # The tests above have left W&B with an open run of seed 0.
    result = command("train", *RUN, "seed=1")
    assert result.code == 0
    assert result.out.count("Weights & Biases failed") == 1
    assert "(Connection" in result.out, result.out
    folder = next(Path("runs").glob("*-s1-*"))
    assert record_at(folder / "record.json")["status"] == "done"
    monkeypatch.setattr(Mirror, "epoch", log)
    assert sync([Path("runs")], Target("kdbench", None, "offline", Path("sync"))) == (1, 0, [])
    entries = wandb_files.written(Path("sync"), folder.name)
    assert [row["epoch"] for row in wandb_files.history(entries)] == [1, 2]


def test_no_logger_starts_no_wandb(command, monkeypatch):
    monkeypatch.setattr(wandb, "init", lambda **_: sys.exit("wandb was started"))
    assert command("train", *RUN[:-1]).code == 0
    assert not list(Path("runs").glob("*/wandb"))


@pytest.mark.parametrize(
    "content",
    [
        b'{"epoch": 1}\n{"epoch"',  # torn
        b"\xff\xfe",
        b"[1.0]",
        b"3",
        b'{"epoch": "1"}',
        b'{"epoch": null}',
        b"[" * 100_000,
    ],
    ids=["torn", "no text", "a list", "a number", "words", "null", "deep"],
)
def test_a_line_that_is_no_row_of_numbers_is_no_metrics(content):
    good = b'{"epoch": 1, "test/top1": 50.0}\n'
    assert rows_of(good) == [{"epoch": 1, "test/top1": 50.0}]
    with pytest.raises(KdbenchError, match=r"^metrics\.jsonl is not a file of metrics$"):
        rows_of(good + content)
