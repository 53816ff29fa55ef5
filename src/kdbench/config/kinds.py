"""The kinds of objects that nodes of a configuration may make."""

import re
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import cache
from pkgutil import resolve_name
from typing import Any

from kdbench.config.conf_files import conf_dir
from kdbench.errors import ConfigError
from kdbench.schema.check import (
    check_node,
    locate,
)
from kdbench.schema.node import Node

_TARGET = re.compile(r"^\s*_target_: *(\S+)", re.MULTILINE)
SHAPED_BY_DATA = ("num_classes", "in_channels")  # a network gets these from the data set
# The class that each node makes, by name, since this wing cannot import theirs.
KINDS = {
    "method": "kdbench.methods.base.Method",
    "dataset": "kdbench.data.base.Dataset",
    "schedule": "kdbench.training.schedule.Schedule",
    "runtime": "kdbench.system.runtime.Runtime",
    "logger": "kdbench.tracking.run_logger.RunLogger",
    "network": "torch.nn.Module",
}
# The kinds that differ in a detector's run.
DETECTION = {
    "dataset": "kdbench.tasks.detection.coco.DetectionData",
    "schedule": "kdbench.training.step_schedule.StepSchedule",
    "network": "kdbench.tasks.detection.networks.Detector",
}


def check_made(path: str, node: object, group: str, given: Collection[str] = ()) -> Node:
    """Check that a node makes the kind of its group, for any task; return it completed.

    Args:
        path: the node's place in the configuration, for error lines.
        node: the node as a plain container.
        group: a key of `KINDS`.
        given: as for `kdbench.schema.check.check_node`.

    Raises:
        ConfigError: it makes another kind, or a key is unknown, missing or ill-typed.
    """
    kind = resolve_name(KINDS[group])
    if group in DETECTION and not _makes(node, group, kind):  # detection is slow to import
        detection = resolve_name(DETECTION[group])
        kind = detection if _makes(node, group, detection) else kind
    return check_node(path, node, given, kind, listed(group))


def group_of(node: object) -> str:
    """Return the key in `KINDS` of a node's object; "method" where it makes none of them."""
    for group in KINDS:
        kinds = [resolve_name(names[group]) for names in (KINDS, DETECTION) if group in names]
        if any(_makes(node, group, kind) for kind in kinds):
            return group
    return "method"


@cache
def listed(group: str) -> frozenset[str] | None:
    """Return the names in kdbench that may make a group's objects: those in its own files.

    Methods need no list, since every `Method` may be made.
    """
    if group == "method":
        return None
    folders = ("student", "teacher") if group == "network" else (group,)
    files = [file for folder in folders for file in (conf_dir() / folder).glob("*.yaml")]
    return frozenset(name for file in files for name in _TARGET.findall(file.read_text()))


def kind_of(path: str, group: str, node: Any, detects: bool) -> type:
    """Return the class that a node must make.

    Raises:
        ConfigError: it makes the kind of another task.
    """
    usual: type = resolve_name(KINDS[group])
    if group not in DETECTION or not isinstance(node, Mapping):
        return usual
    if not detects and group != "schedule" and not _may_detect(node):
        return usual
    detection: type = resolve_name(DETECTION[group])
    name = node.get("name")
    if not detects and _makes(node, group, detection):
        raise ConfigError(
            f"{path} {name} is for detection (kdbench-train task=detection): choose another"
        )
    if detects and not _makes(node, group, detection) and _makes(node, group, usual):
        raise ConfigError(
            f"{path} {name} is for classification: task=detection takes dataset=coco, "
            "schedule=coco and networks called fasterrcnn_..."
        )
    return detection if detects else usual


def _may_detect(node: Mapping[str, Any]) -> bool:
    """Return whether a node's target can be of detection, which it has then imported (slow)."""
    with suppress(ConfigError):
        locate("", node.get("_target_"))
    return "kdbench.tasks.detection" in sys.modules


def _makes(node: object, group: str, kind: type) -> bool:
    try:
        target = node.get("_target_") if isinstance(node, Mapping) else None
        locate("", target, kind, listed(group))
    except ConfigError:
        return False
    return True
