"""What must be equal for two scores to stand in one table."""

from collections.abc import Mapping
from typing import Any

PLAIN = {"precision": "fp32", "table_precision": "fp32"}
KEYS = ("epochs", "steps", "batch_size", *PLAIN)  # of a schedule, which the protocol's name says


def protocol_of(config: Mapping[str, Any]) -> str:
    """The protocol of a run, such as "cifar100-240ep-b64-last" or "coco-180000steps-b8-last".

    Data set, epochs or steps, batch size, and that the last is what counts; arithmetic other than
    fp32, training images that were scaled down or decoded otherwise and held-out ones show as
    further parts. Learning rate, milestones and weight decay are the method's and the student's to
    tune: they are in the record, and in its hash.

    Args:
        config: a checked configuration, or a record's.
    """
    dataset, schedule = config["dataset"], config["schedule"]
    length = f"{schedule['steps']}steps" if "steps" in schedule else f"{schedule['epochs']}ep"
    parts = [dataset["name"], length, f"b{schedule['batch_size']}"]
    for key, plain in PLAIN.items():
        value = schedule.get(key, plain)
        if value != plain:
            parts.append(f"{key.removesuffix('precision').strip('_')}{value}")
    if dataset.get("resized"):
        parts.append(f"resized{dataset['resized']}")
    if dataset.get("decoder", "pillow") != "pillow":
        parts.append(dataset["decoder"])
    if dataset.get("val_split"):
        parts.append(f"val{dataset['val_split']}")
    return "-".join([*parts, "last"])
