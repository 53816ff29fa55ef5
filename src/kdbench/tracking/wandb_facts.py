"""The facts about a run that Weights & Biases gets besides its curves."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdbench.errors import KdbenchError
from kdbench.records.contents import Record, RecordedSettings
from kdbench.records.identity import teacher_label
from kdbench.records.weights import find_checkpoint

# These fields of a record describe how the run was made. They go to W&B's configuration, by which
# runs are filtered and grouped; its other single values are results and go to the summary.
MADE = ("data", "commit", "versions", "hardware")
NAMES = ("format", "run_id", "cell", "hash", "seed", "protocol", *MADE)


def pair_of(config: RecordedSettings) -> str:
    """Return teachers and student in one name, as in `conf/pair`."""
    labels = [teacher_label(name, one.network) for name, one in config.teacher.items()]
    return f"{'+'.join(labels) or 'none'}_{config.student.name}"


def summary(record: Record) -> dict[str, Any]:
    """Return a record's results that are single values, with agreement and scores by teacher."""
    content = record.spelt()
    values = {
        key: value
        for key, value in content.items()
        if key not in NAMES and isinstance(value, int | float | str)
    }
    agreement = content.get("agreement", {})
    values |= {f"agreement/{name}": value for name, value in agreement.items()}
    metric = record.task.metric
    measured = {teacher.name: teacher.score for teacher in record.teachers}
    return values | {
        f"teacher_{metric}/{name}": score for name, score in measured.items() if score is not None
    }


def teacher_files(checkpoints: Sequence[str], runs_dir: Path) -> list[Path]:
    """Return the files of a configuration's teachers that still exist."""
    found = []
    for name in checkpoints:
        with suppress(KdbenchError):
            found.append(find_checkpoint(name, runs_dir))
    return found
