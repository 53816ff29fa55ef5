"""Reading back what Weights & Biases wrote offline."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK = 32768
HEADER = struct.Struct("<IHB")  # checksum, length, type: 1 whole, 2 first, 3 middle, 4 last

Entry = wandb_internal_pb2.Record


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


def written(folder: Path, run_id: str = "*") -> list[Entry]:
    """What W&B wrote of a run, offline; its service may still be writing when `finish` returns."""
    (path,) = folder.glob(f"wandb/offline-run-*-{run_id}/*.wandb")
    deadline = time.monotonic() + 60
    while True:
        entries = [Entry.FromString(entry) for entry in chunks(path.read_bytes())]
        if entries and entries[-1].HasField("exit"):
            return entries
        assert time.monotonic() < deadline, "W&B did not finish its file"
        time.sleep(0.05)


def history(entries: list[Entry]) -> list[dict[str, Any]]:
    """The logged rows, without W&B's own keys."""
    rows = [e.history.item for e in entries if e.HasField("history")]
    return [{k: v for k, v in values(row).items() if not k.startswith("_")} for row in rows]


def summary(entries: list[Entry]) -> dict[str, Any]:
    """The summary that was set besides the history."""
    found: dict[str, Any] = {}
    for entry in entries:
        if entry.HasField("summary"):
            found |= values(entry.summary.update)
    return found


def config(entries: list[Entry]) -> dict[str, Any]:
    """The configuration in its last state."""
    found: dict[str, Any] = {}
    for entry in entries:
        for part in (entry.run.config, entry.config):
            found |= values(part.update)
    return found


def values(items: Any) -> dict[str, Any]:
    """Keys and values of W&B's items."""
    return {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
