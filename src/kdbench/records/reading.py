"""Checks of a record's JSON: the fields that its readers need are there and of their types.

A checksum shows that a record is unchanged, not who wrote it: records are sent in by others, and
names in them become names of files.
"""

from collections.abc import Mapping
from typing import Any, Literal

from kdbench.errors import ConfigError
from kdbench.records.contents import (
    LONGEST,
    ClassifierRecord,
    DetectorRecord,
    Done,
    FailedRecord,
    Record,
)
from kdbench.records.task_kinds import TASKS
from kdbench.schema.check import check_plain, convert

LARGEST = 1e9  # no honest number of a record is beyond: seconds of thirty years
KINDS: dict[str, type[Done]] = {"classification": ClassifierRecord, "detection": DetectorRecord}


def record_of(content: Mapping[str, Any]) -> Record:
    """Check a record's JSON and return the record.

    Raises:
        ConfigError: names the field that is not.
    """
    if "status" not in content:
        raise ConfigError("status is missing")
    convert("status", content["status"], Literal["done", "failed"])
    config = content.get("config")
    task = config.get("task", "classification") if isinstance(config, Mapping) else "classification"
    if not isinstance(task, str) or task not in TASKS:
        raise ConfigError(f"config.task={task!r} is not one of {', '.join(TASKS)}")
    failed = content["status"] == "failed"
    record: Record = FailedRecord.read(content) if failed else KINDS[task].read(content)
    schedule = record.config.schedule.settings
    for key in ("batch_size", record.task.length):
        if key not in schedule:
            raise ConfigError(f"config.schedule.{key} is missing")
        convert(f"config.schedule.{key}", schedule[key], int)
    _check_names(record)
    check_plain("record", {key: value for key, value in content.items() if key != "error"})
    if isinstance(record, Done):
        _check_numbers(record)
    return record


def _check_names(record: Record) -> None:
    run_id = record.run_id
    if run_id != f"{record.cell}-s{record.seed}-{record.hash}":
        raise ConfigError(f"run_id={run_id!r} is not made of cell, seed and hash")
    parts = [record.data.name, record.config.student.name, record.protocol]
    parts += [teacher.name for teacher in record.teachers]
    too_long = max(len(run_id.encode(errors="replace")), len("_".join(parts))) > LONGEST
    if too_long or any(part in run_id for part in ("/", "\\", "\0", "\n")):
        raise ConfigError(f"run_id={run_id!r} cannot name a file")


def _check_numbers(record: Done) -> None:
    task = record.task
    for key in task.scores:
        score = getattr(record, key)
        if not 0 <= (score or 0) <= 100:
            raise ConfigError(f"{key} must be from 0 to 100 percent, not {score}")
    cost, length = record.cost, record.config.schedule.settings[task.length]
    numbers = {"seconds_share": cost.seconds_share, "cpu_seconds": cost.cpu_seconds}
    numbers |= {"gpu_seconds": cost.gpu_seconds, "seed": record.seed, task.length: length}
    for key, value in numbers.items():
        if not 0 <= (value or 0) <= LARGEST:
            raise ConfigError(f"{key} must be from 0 to {LARGEST:g}, not {value}")
    curve = record.curve or {}
    if len({len(line) for line in curve.values()}) > 1 or (curve and task.headline not in curve):
        raise ConfigError(f"curve must have lines of one length, among them {task.headline}")
    for line in curve.values():
        if any(abs(value) > LARGEST for value in line):
            raise ConfigError(f"curve must stay within {LARGEST:g}")
