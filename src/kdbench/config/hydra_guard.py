"""The keys of Hydra's own node that a command or a file may set: launcher, settings and sweep.

Everything else in it (logging, callbacks, folders, plugins, the search path) stays as kdbench sets
it, and Hydra calls nothing that the node names: kdbench reads the literals below.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kdbench.errors import ConfigError
from kdbench.schema.check import convert, refuse_unknown
from kdbench.schema.secrets import refuse_secrets

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
COHORTS = "hydra_plugins.kdbench_cohort.launcher.CohortLauncher"
LAUNCHERS: dict[str, dict[str, Any]] = {  # the settings of each
    BASIC: {"fail_fast": bool},
    COHORTS: {
        "size": int,
        "executor": str,
        "processes": int | None,
        "fail_fast": bool,
        "minutes": float | None,
        "order": str,
        "headline": int | None,
        "submitit": dict[str, Any],
        "ray": dict[str, Any],
    },
}
KEYS = ("hydra.mode", "hydra/launcher", "hydra.launcher", "hydra.sweeper.params")
# Of a composed node: the keys read below, and those that Hydra writes about the command.
OPEN = ("mode", "launcher", "sweeper.params", "overrides", "runtime", "job.override_dirname")
OTHERS = f"is not allowed: of Hydra's settings, only {', '.join(KEYS)} can be set"


def check_key(key: str) -> None:
    """Refuse an override of a forbidden key, before anything is composed with it.

    Raises:
        ConfigError: the key is forbidden: `hydra.searchpath`, for one, would import modules.
    """
    below = tuple(f"{allowed}." for allowed in KEYS if "/" not in allowed)
    if key == "hydra" or (
        key.startswith(("hydra.", "hydra/")) and key not in KEYS and not key.startswith(below)
    ):
        raise ConfigError(f"{shown(key)} {OTHERS}")


def check_called(node: object, ours: Mapping[Any, Any]) -> None:
    """Refuse a composed node that differs from kdbench's in a forbidden key.

    Args:
        node: Hydra's node as plain values, with interpolations unresolved.
        ours: the node of a command without arguments.

    Raises:
        ConfigError: a key differs; the message names it.
    """
    if not isinstance(node, Mapping):
        raise ConfigError(f"hydra must be a mapping, not {node!r}")
    for path in differences(node, ours):
        raise ConfigError(f"hydra.{shown(path)} {OTHERS}")
    sweeper = node["sweeper"]
    for name, told in (("launcher", node["launcher"]), ("sweeper.params", sweeper["params"])):
        refuse_secrets({f"hydra.{name}": told})
        for path, text in leaves(f"hydra.{name}", told):
            if "${" in text:
                given = shown(f"{path}={text}")
                raise ConfigError(f"{given} is not allowed: write the value itself")
    launcher_settings(node["launcher"])
    convert("hydra.sweeper.params", sweeper["params"], dict[str, Any] | None)


def launcher_settings(node: object) -> tuple[bool, dict[str, Any]]:
    """Return whether a node names the launcher of cohorts, and its settings.

    Raises:
        ConfigError: it is another launcher, or a setting is unknown.
    """
    if not isinstance(node, Mapping):
        raise ConfigError(f"hydra.launcher must be a mapping, not {node!r}")
    target = node.get("_target_")
    if not isinstance(target, str) or target not in LAUNCHERS:
        raise ConfigError(
            f"hydra.launcher._target_={shown(str(target))} is not allowed: set "
            "hydra/launcher=basic or cohort"
        )
    hints, told = LAUNCHERS[target], {key: node[key] for key in node if key != "_target_"}
    refuse_unknown("hydra.launcher", told, list(hints))
    settings = {
        key: convert(f"hydra.launcher.{key}", value, hints[key]) for key, value in told.items()
    }
    return target == COHORTS, settings


def differences(node: object, ours: object, path: str = "") -> Iterator[str]:
    """Yield the dotted keys in which a node differs from ours, except those in `OPEN`."""
    if path in OPEN:
        return
    if isinstance(node, Mapping) and isinstance(ours, Mapping):
        for key in {**ours, **node}:
            inner = f"{path}.{key}" if path else str(key)
            yield from differences(node.get(key, ...), ours.get(key, ...), inner)
    elif type(node) is not type(ours) or node != ours:
        yield path


def leaves(path: str, node: object) -> Iterator[tuple[str, str]]:
    """Yield the single values of a node and its keys, as text, each with its dotted path."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield path, str(key)
            yield from leaves(f"{path}.{key}", value)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from leaves(f"{path}.{i}", value)
    else:
        yield path, str(node)


def shown(text: str) -> str:
    """Return a foreign key or value on one line."""
    return text if text.isprintable() else ascii(text)
