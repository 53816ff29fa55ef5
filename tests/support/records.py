"""Records made by hand, for tests of everything that reads them."""

import hashlib
import json
from pathlib import Path
from typing import Any

from kdbench.config.conf_nodes import compose, without_inferred
from kdbench.records.identity import canonical
from kdbench.records.record import FORMAT, checksum, read_record

PROTOCOL = "cifar100-240ep-b64-last"


def make_record(
    method: str = "kd",
    seed: int = 0,
    top1: float = 70.0,
    *,
    teacher: str = "resnet32x4",
    student: str = "resnet8x4",
    dataset: str = "cifar100",
    epochs: int = 240,
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A finished run's record as JSON, checksum not included.

    Args:
        method: its name.
        seed: of the run.
        top1: at the last epoch, percent; the best epoch is 0.3 above.
        teacher: its name, "none", or several joined by "+".
        student: its name.
        dataset: its name.
        epochs: of the schedule.
        settings: of the method; they change the hash.
        changes: keys of the record, replaced or added last.
    """
    node = {"_target_": f"mylab.{method}", **without_inferred(compose("method", method) or {})}
    names = [] if teacher == "none" else teacher.split("+")
    config = {
        "method": {**node, "name": method, **(settings or {})},
        "student": {"_target_": f"kdbench.networks.{student}", "name": student},
        "schedule": {"name": dataset, "epochs": epochs, "batch_size": 64, "lr": 0.05},
        "runtime": {"name": "auto", "device": "auto"},
        "seed": seed,
        "dataset": {"name": dataset, "val_split": 0},
        "teacher": {name: {"network": {"name": name}} for name in names},
    }
    scores = {"top1": 79.42, "passport_top1": 79.42, "source": None}
    cell = "-".join([dataset, teacher, student, method])
    identity = canonical([config["method"], config["schedule"], teacher, student])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    record: dict[str, Any] = {
        "format": FORMAT,
        "run_id": f"{cell}-s{seed}-{digest}",
        "cell": cell,
        "hash": digest,
        "seed": seed,
        "config": config,
        "data": {"name": dataset, "sha256": "0" * 64, "train": 50000, "test": 10000},
        "commit": "0" * 40,
        "versions": {"kdbench": "0.1.0", "python": "3.11.7", "torch": "2.15.0"},
        "hardware": {"device": "cpu", "cpu": "AMD EPYC", "cores": 2, "threads": 2},
        "teachers": [{"name": name, "sha256": "1" * 64, **scores} for name in names],
        "status": "done",
        "finished": "2026-01-01T00:00:00+00:00",
        "protocol": PROTOCOL if epochs == 240 else f"{dataset}-{epochs}ep-b64-last",
        "epochs": epochs,
        "top1_last": top1,
        "top1_last5": top1 - 0.05,
        "top1_best_on_test": top1 + 0.3,
        "epoch_best_on_test": epochs - 1,
        "top5_last": 92.0,
        "loss_last": 1.1,
        "agreement": dict.fromkeys(names, 80.0),
        "ece_last": 5.0,
        "seconds": 7200.0,
        "seconds_share": 3600.0,
        "cpu_seconds": 5400.0,
        "gpu_seconds": None,
        "peak_memory_mb": 900.0,
        "companions": 1,
        "student_sha256": "2" * 64,
        "curve": {
            "train/loss": [3.0, 2.0],
            "train/top1": [30.0, top1],
            "test/top1": [40.0, top1],
        },
    }
    return {**record, **changes}


def fail(record: dict[str, Any], error: str = "a loss is not finite: lower the learning rate"):
    """The record of the same run, had it failed."""
    results = ("top1", "top5", "loss", "agreement", "ece", "curve", "epoch", "student_sha256")
    kept = {key: value for key, value in record.items() if not key.startswith(results)}
    return {**kept, "status": "failed", "error": error}


def write(folder: Path, *records: dict[str, Any]) -> Path:
    """Write records as `results/runs` holds them; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        write_content(record, folder / f"{record['run_id']}.json")
    return folder


def write_content(content: dict[str, Any], path: Path) -> None:
    """Write a record's JSON with its checksum, whatever it says."""
    text = json.dumps({**content, "checksum": checksum(content)}, indent=1)
    path.write_text(text + "\n")


def record_at(path: Path) -> dict[str, Any]:
    """A record's JSON, once kdbench has read it."""
    return read_record(path).spelt()
