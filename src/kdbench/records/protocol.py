"""The protocol of a run: the settings that scores in one table share."""

from kdbench.schema.node import Node

PLAIN = {"precision": "fp32", "table_precision": "fp32"}
# A schedule's further keys that are in the protocol's name: what it says before a value, and the
# value that is left out.
RECIPE = {
    "optimizer": ("", "sgd"),
    "label_smoothing": ("smoothing", 0.0),
    "mixup": ("mixup", 0.0),
    "cutmix": ("cutmix", 0.0),
    "random_erasing": ("erasing", 0.0),
    "rand_augment": ("", None),
    "repeats": ("repeats", 1),
}
# The keys of a schedule and of a data set that are in the protocol's name.
KEYS = ("epochs", "steps", "batch_size", *PLAIN, *RECIPE)
DATA_KEYS = ("resized", "decoder", "fraction", "long_tail", "val_split")


def protocol_of(dataset: Node, schedule: Node) -> str:
    """Return a run's protocol, such as "cifar100-240ep-b64-last" or "coco-180000steps-b8-last".

    The parts are the data set, epochs or steps, the batch size, and "last" for the epoch that is
    scored. Further parts show precision other than fp32, another optimizer than SGD, smoothed
    labels, mixed or otherwise changed images, training images that were scaled down, decoded
    differently or left out, and held-out images. Learning rate, milestones and weight decay
    may be tuned for the method and the student, so they are in the record and its hash alone.
    """
    data, pace = dataset.settings, schedule.settings
    length = f"{pace['steps']}steps" if "steps" in pace else f"{pace['epochs']}ep"
    parts = [dataset.name, length, f"b{pace['batch_size']}"]
    for key, plain in PLAIN.items():
        value = pace.get(key, plain)
        if value != plain:
            parts.append(f"{key.removesuffix('precision').strip('_')}{value}")
    for key, (word, usual) in RECIPE.items():
        value = pace.get(key, usual)
        if value != usual:
            parts.append(word + (value if isinstance(value, str) else f"{value:g}"))
    if data.get("resized"):
        parts.append(f"resized{data['resized']}")
    if data.get("decoder", "pillow") != "pillow":
        parts.append(data["decoder"])
    if data.get("fraction", 1) != 1:
        parts.append(f"fraction{data['fraction']:g}")
    if data.get("long_tail", 1) != 1:
        parts.append(f"lt{data['long_tail']:g}")
    if data.get("val_split"):
        parts.append(f"val{data['val_split']}")
    return "-".join([*parts, "last"])
