"""The fields of a record that its readers need: tables, the page, comparisons and W&B.

A checksum shows that a record is unchanged, not who wrote it: records are sent in by others, and
names in them become names of files.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from kdbench.errors import ConfigError
from kdbench.schema.check import check_plain, convert

SECONDS = float | None  # None where the time was not measured
ALL: dict[str, Any] = {
    "run_id": str,
    "cell": str,
    "hash": str,
    "seed": int,
    "protocol": str,
    "status": Literal["done", "failed"],
    "config.method.name": str,
    "config.student.name": str,
    "config.dataset.name": str,
    "config.schedule.name": str,
    "config.schedule.batch_size": int,
    "config.teacher": dict[str, object],  # has nodes of networks
    "config.seed": int,
    "data.name": str,
    "data.sha256": str,
    "commit": str | None,
    "versions": dict[str, str],
    "hardware.cpu": str,
    "hardware.threads": int,
    "teachers": list[dict[str, Any]],
}
FAILED: dict[str, Any] = {"error": str}
DONE: dict[str, Any] = {
    "seconds_share": SECONDS,
    "cpu_seconds": SECONDS,
    "gpu_seconds": SECONDS,
}
PERCENT = float | None  # None where there is nothing to score


class Task(NamedTuple):
    """The differences between the records of tasks."""

    length: str  # the unit of training's length, in schedule and record
    headline: str  # of a row, and so of the curve
    scores: dict[str, Any]  # of a run that is done, in percent


TASKS = {
    "classification": Task(
        "epochs",
        "test/top1",
        {"top1_last": float, "top1_last5": float, "top1_best_on_test": float},
    ),
    "detection": Task(
        "steps",
        "test/ap",
        {"ap_last": float, "ap_best_on_test": float}
        | {f"ap{kind}_last": PERCENT for kind in ("50", "75", "_small", "_medium", "_large")},
    ),
}
OPTIONAL: dict[str, Any] = {  # of this type where present
    "hardware.gpu": str,
    "hardware.ranks": int,
    "agreement": dict[str, float],
    "config.start": dict[str, str],
    "curve": dict[str, list[float]],
    "diverged_step": int,
    "student_sha256": str,
    "metrics_sha256": str,
}
TEACHER: dict[str, Any] = {"name": str, "sha256": str, "top1": float | None}
LONGEST = 200  # bytes of a name; file systems take 255, with an ending
LARGEST = 1e9  # of a record's numbers; as seconds, thirty years


def check_fields(record: Mapping[str, Any]) -> None:
    """Check a record for the fields that its readers need.

    Raises:
        ConfigError: a field is missing or wrong; the message names it.
    """
    for key, hint in ALL.items():
        _check(record, key, hint)
    task = task_of(record)
    _check(record, f"config.schedule.{task.length}", int)
    done = {task.length: int, **task.scores, **DONE}
    for key, hint in (done if record["status"] == "done" else FAILED).items():
        _check(record, key, hint)
    for key, hint in OPTIONAL.items():
        if _has(record, key):
            _check(record, key, hint)
    for i, teacher in enumerate(record["teachers"]):
        for key, hint in TEACHER.items():
            convert(f"teachers[{i}].{key}", teacher.get(key), hint)
    for name, node in record["config"]["teacher"].items():
        _check({name: node}, f"{name}.network.name", str)
    if record["run_id"] != f"{record['cell']}-s{record['seed']}-{record['hash']}":
        raise ConfigError(f"run_id={record['run_id']!r} is not made of cell, seed and hash")
    parts = [record["data"]["name"], record["config"]["student"]["name"], record["protocol"]]
    parts += [teacher["name"] for teacher in record["teachers"]]
    too_long = max(len(record["run_id"].encode(errors="replace")), len("_".join(parts))) > LONGEST
    if too_long or any(part in record["run_id"] for part in ("/", "\\", "\0", "\n")):
        raise ConfigError(f"run_id={record['run_id']!r} cannot name a file")
    check_plain("record", {key: value for key, value in record.items() if key != "error"})
    if record["status"] == "done":
        _check_numbers(record, task)


def task_of(record: Mapping[str, Any]) -> Task:
    """Return a record's task.

    Raises:
        ConfigError: this version does not know the task.
    """
    name = record["config"].get("task", "classification")
    if not isinstance(name, str) or name not in TASKS:
        raise ConfigError(f"config.task={name!r} is not one of {', '.join(TASKS)}")
    return TASKS[name]


def detects(record: Mapping[str, Any]) -> bool:
    """Return whether a record is a detector's; detectors have tables of their own."""
    return task_of(record) is TASKS["detection"]


def _check_numbers(record: Mapping[str, Any], task: Task) -> None:
    for key in task.scores:
        if not 0 <= (record[key] or 0) <= 100:
            raise ConfigError(f"{key} must be from 0 to 100 percent, not {record[key]}")
    numbers = {key: record.get(key) or 0 for key in ("seconds_share", "cpu_seconds", "gpu_seconds")}
    numbers |= {"seed": record["seed"], task.length: record["config"]["schedule"][task.length]}
    for key, value in numbers.items():
        if not 0 <= value <= LARGEST:
            raise ConfigError(f"{key} must be from 0 to {LARGEST:g}, not {value}")
    curve = record.get("curve", {})
    if len({len(line) for line in curve.values()}) > 1 or (curve and task.headline not in curve):
        raise ConfigError(f"curve must have lines of one length, among them {task.headline}")
    for line in curve.values():
        if any(abs(value) > LARGEST for value in line):
            raise ConfigError(f"curve must stay within {LARGEST:g}")


def _has(record: Mapping[str, Any], key: str) -> bool:
    node: Any = record
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def _check(record: Mapping[str, Any], key: str, hint: Any) -> None:
    if not _has(record, key):
        raise ConfigError(f"{key} is missing")
    node: Any = record
    for part in key.split("."):
        node = node[part]
    convert(key, node, hint)
