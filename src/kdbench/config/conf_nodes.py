"""Nodes of `conf/`, composed without Hydra for the tables.

Files are composed as by Hydra, in the few forms that those of methods, schedules, networks, data
sets and pairs have; this needs no torch.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from kdbench.config.conf_files import conf_dir
from kdbench.schema.plugins import conf_dirs

NAME = re.compile(r"[\w.+-]{1,200}", re.ASCII)  # of a file of conf/
Plain = dict[str, Any]  # a node as the files have it
OVER = "override "  # the beginning of a default that replaces one of a file above


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # it has no annotations
    """Reads 1e-4 as a number, as OmegaConf does; in YAML 1.1 it is text without a point."""


EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))


def names(group: str) -> list[str]:
    """Return the names of a group's files, in kdbench's conf and in those of packages."""
    return sorted({path.stem for folder in _folders() for path in (folder / group).glob("*.yaml")})


@cache
def compose(group: str, name: str | None, over: tuple[tuple[str, str], ...] = ()) -> Plain | None:
    """Compose the node of a file of conf with its defaults; None without a file.

    Args:
        group: the file's group.
        name: the file's name.
        over: the choices by which a file that starts from this one replaces its defaults.
    """
    own = read(group, name)
    if own is None:
        return None
    node: Plain = {}
    rest = {key: value for key, value in own.items() if key != "defaults"}
    entries = own.get("defaults", ["_self_"])
    pairs = [pair for entry in entries if isinstance(entry, dict) for pair in entry.items()]
    chosen = {key.removeprefix(OVER): value for key, value in pairs if key.startswith(OVER)}
    chosen |= dict(over)
    for entry in entries:
        if entry == "_self_":
            node = merged(node, rest)
        elif isinstance(entry, str):
            node = merged(node, compose(group, entry, tuple(sorted(chosen.items()))) or {})
        else:
            for key, value in entry.items():
                if not key.startswith(OVER):
                    node = merged(node, _placed(key, chosen.get(key, value)))
    return node


def _placed(key: str, value: str) -> Plain:
    """Return the node of a default such as `/method@inner: kd`."""
    group, _, place = key.lstrip("/").partition("@")
    part: Any = compose(group, value) or {}
    for step in reversed(place.split(".")):
        part = {step: part}
    made: Plain = part
    return made


def merged(node: Mapping[str, Any], over: Mapping[str, Any]) -> Plain:
    """Return a node with another one's values on top."""
    result = dict(node)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = merged(old, value)
        result[key] = value
    return result


@cache
def read(group: str, name: str | None) -> Plain | None:
    """Read one file of conf, uncomposed."""
    content = text(group, name)
    node = None if content is None else _Loader(content).get_single_data()
    return node if isinstance(node, dict) else None


def text(group: str, name: str | None) -> str | None:
    """A file of conf as it is written; None where there is none of that name."""
    if name is None or not NAME.fullmatch(name):
        return None
    for folder in _folders():
        path = folder / group / f"{name}.yaml"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    return None


def _folders() -> list[Path]:
    return [conf_dir(), *conf_dirs()]


def without_inferred(node: Any) -> Any:
    """Return a method's node without `inferred`, which names settings but sets nothing."""
    if not isinstance(node, Mapping):
        return node
    return {key: without_inferred(value) for key, value in node.items() if key != "inferred"}
