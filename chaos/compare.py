"""Whether two folders hold the same run, bit for bit or to rounding, apart from what it cost."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from kdbench.records.passport import beside
from kdbench.records.record import RECORD_FILE, read_record
from kdbench.records.weights import STUDENT_FILE
from kdbench.tracking.run_logger import METRICS_FILE

COSTS = {  # of a record: when it was made, what it took, and beside whom
    *("finished", "seconds", "seconds_share", "cpu_seconds", "gpu_seconds", "peak_memory_mb"),
    *("companions", "commit", "checksum", "metrics_sha256"),  # the metrics hold seconds
}

# Of the norm of the weights: rounding, which ReLUs magnify (tests/training/test_fused.py).
CLOSE = 2e-3


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs, in a few words each.

    Weights and passport are compared as bytes, metrics and record without times and cost.
    """
    found = []
    for path in (Path(STUDENT_FILE), beside(Path(STUDENT_FILE))):
        if (one / path).read_bytes() != (other / path).read_bytes():
            found.append(path.name)
    if metrics(one) != metrics(other):
        found.append(METRICS_FILE)
    records = [results(folder) for folder in (one, other)]
    found += [f"record: {key}" for key in records[0] if records[0][key] != records[1].get(key)]
    return found


def distance(one: Path, other: Path) -> float:
    """How far the weights and statistics of two finished runs are apart, relative to their norm."""
    first, second = (load_file(folder / STUDENT_FILE) for folder in (one, other))
    apart = torch.cat([(first[key] - second[key]).double().flatten() for key in first])
    norm = torch.cat([value.double().flatten() for value in first.values()]).norm()
    return (apart.norm() / norm).item()


def far(one: Path, other: Path) -> list[str]:
    """What differs by more than rounding between two finished runs."""
    epochs = [[row["epoch"] for row in metrics(folder)] for folder in (one, other)]
    found = [METRICS_FILE] * (epochs[0] != epochs[1])
    apart = distance(one, other)
    return found + [f"weights: {apart:.1e} of their norm"] * (not apart <= CLOSE)


def metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a run, without the seconds."""
    rows = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def results(folder: Path) -> dict[str, Any]:
    """A run's record, without times and cost, and without what its hash leaves out."""
    record = read_record(folder / RECORD_FILE).spelt()
    del record["config"]["runtime"]
    return {key: value for key, value in record.items() if key not in COSTS}
