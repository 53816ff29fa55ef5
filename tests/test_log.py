"""Weights & Biases mirrors a run and never endangers it."""

import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from kdbench.record import read_record

RUN = [
    "dataset=synthetic",
    "dataset.num_train=40",
    "dataset.num_test=20",
    "student=resnet8",
    "runtime=cpu",
    "logger=wandb",
]


BLOCK = 32768
HEADER = struct.Struct("<IHB")  # checksum, length, type: 1 whole, 2 first, 3 middle, 4 last


def chunks(content: bytes) -> Iterator[bytes]:
    """The entries of a W&B file: LevelDB's log format after a header of seven bytes."""
    position, entry = 7, b""
    while position + HEADER.size <= len(content):
        left = BLOCK - position % BLOCK
        if left < HEADER.size:
            position += left
            continue
        _, length, kind = HEADER.unpack_from(content, position)
        position += HEADER.size
        if position + length > len(content):  # still being written
            return
        entry += content[position : position + length]
        position += length
        if kind in (1, 4):
            yield entry
            entry = b""


def written(folder: Path) -> list[wandb_internal_pb2.Record]:
    """What W&B wrote of a run, offline; its service may still be writing when `finish` returns."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    while True:
        entries = list(chunks(path.read_bytes()))
        records = [wandb_internal_pb2.Record.FromString(entry) for entry in entries]
        if records and records[-1].HasField("exit"):
            return records
        assert time.monotonic() < deadline, "W&B did not finish its file"
        time.sleep(0.05)


def test_offline_run_holds_config_group_and_history(command):
    assert command("train", *RUN).code == 0
    folder = next(Path("runs").glob("*-s0-*"))
    records = written(folder)
    (run,) = [record.run for record in records if record.HasField("run")]
    record = read_record(folder / "record.json")
    assert (run.run_id, run.run_group, run.job_type) == (record["run_id"], record["cell"], "train")
    assert "schedule" in {update.key for update in run.config.update}
    rows = [
        {
            item.nested_key[0] if item.nested_key else item.key: item.value_json
            for item in r.history.item
        }
        for r in records
        if r.HasField("history")
    ]
    assert [float(row["epoch"]) for row in rows] == [1, 2]
    assert float(rows[-1]["test/top1"]) == record["top1_last"]
    metrics = {r.metric.name for r in records if r.HasField("metric")}
    assert {"epoch", "test/top1"} <= metrics


@pytest.mark.parametrize("broken", ["init", "log"])
def test_a_failure_of_wandb_is_said_once_and_stops_nothing(command, monkeypatch, broken):
    def fail(*args, **kwargs):
        raise wandb.errors.CommError("service is gone")

    monkeypatch.setattr(*((wandb, "init") if broken == "init" else (wandb.Run, "log")), fail)
    result = command("train", *RUN)
    assert result.code == 0
    assert result.out.count("Weights & Biases failed") == 1
    assert len(next(Path("runs").glob("*-s0-*/metrics.jsonl")).read_text().splitlines()) == 2


def test_no_logger_starts_no_wandb(command, monkeypatch):
    monkeypatch.setattr(wandb, "init", lambda **_: sys.exit("wandb was started"))
    assert command("train", *RUN[:-1]).code == 0
    assert not list(Path("runs").glob("*/wandb"))
