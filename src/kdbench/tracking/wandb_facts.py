"""What Weights & Biases is told of a run besides its curves."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdbench.errors import KdbenchError
from kdbench.records.identity import teacher_label
from kdbench.records.record import Record
from kdbench.records.weights import find_checkpoint

# Of a record: how the run was made goes to the configuration, which runs are filtered and grouped
# by; its other single values are results and go to the summary.
MADE = ("data", "commit", "versions", "hardware")
NAMES = ("format", "run_id", "cell", "hash", "seed", "protocol", *MADE)


def pair_of(config: Mapping[str, Any]) -> str:
    """Teachers and student in one name, as in `conf/pair`."""
    labels = [teacher_label(name, node) for name, node in config["teacher"].items()]
    return f"{'+'.join(labels) or 'none'}_{config['student']['name']}"


def summary(record: Record) -> dict[str, Any]:
    """The single values of a record that are results; agreement and measured top-1 by teacher."""
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
    """The weights that a whole configuration names as its teachers', where they are still there."""
    found = []
    for node in config["teacher"].values():
        with suppress(KdbenchError):
            found.append(find_checkpoint(node["checkpoint"], runs_dir))
    return found
