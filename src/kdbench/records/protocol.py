"""The protocol of a run: the settings that scores in one table share."""

from collections.abc import Mapping
from typing import Any

PLAIN = {"precision": "fp32", "table_precision": "fp32"}
KEYS = (
    "epochs",
    "steps",
    "batch_size",
    *PLAIN,
)  # a schedule's keys that are in the protocol's name


def protocol_of(config: Mapping[str, Any]) -> str:
    """Return a run's protocol, such as "cifar100-240ep-b64-last" or "coco-180000steps-b8-last".

    The parts are the data set, epochs or steps, the batch size, and "last" for the epoch that is
    scored. Further parts show precision other than fp32, training images that were scaled down or
    decoded differently, and held-out images. Learning rate, milestones and weight decay may be
    tuned for the method and the student, so they are in the record and its hash alone.

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
