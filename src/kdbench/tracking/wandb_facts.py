"""The facts about a run that Weights & Biases gets besides its curves."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdbench.errors import KdbenchError
from kdbench.records.identity import teacher_label
from kdbench.records.record import Record
from kdbench.records.weights import find_checkpoint

# These fields of a record describe how the run was made. They go to W&B's configuration, by which
# runs are filtered and grouped; its other single values are results and go to the summary.
MADE = ("data", "commit", "versions", "hardware")
NAMES = ("format", "run_id", "cell", "hash", "seed", "protocol", *MADE)


def pair_of(config: Mapping[str, Any]) -> str:
    """Return teachers and student in one name, as in `conf/pair`."""
    labels = [teacher_label(name, node) for name, node in config["teacher"].items()]
    return f"{'+'.join(labels) or 'none'}_{config['student']['name']}"


def summary(record: Record) -> dict[str, Any]:
    """Return a record's results that are single values, with agreement and top-1 by teacher."""
    values = {
        key: value
        for key, value in record.items()
        if key not in NAMES and isinstance(value, int | float | str)
    }
    agreement = record.get("agreement", {})
    values |= {f"agreement/{name}": value for name, value in agreement.items()}
    measured = {one["name"]: one.get("top1") for one in record.get("teachers", ())}
    return values | {
        f"teacher_top1/{name}": top1 for name, top1 in measured.items() if top1 is not None
    }


def teacher_files(config: Mapping[str, Any], runs_dir: Path) -> list[Path]:
    """Return the files of a whole configuration's teachers that still exist."""
    found = []
    for node in config["teacher"].values():
        with suppress(KdbenchError):
            found.append(find_checkpoint(node["checkpoint"], runs_dir))
    return found
