"""From a checked node to the object that it describes; the only place that makes what one names."""

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

from kdbench.config.kinds import check_made, group_of
from kdbench.errors import ConfigError, KdbenchError
from kdbench.schema.node import Node


def make(node: Node | Mapping[str, Any], group: str | None = None, /, **given: Any) -> Any:
    """Build what a node describes; it is held against the schema here, whoever did so before.

    Args:
        node: names what is called, and holds its settings.
        group: which of `kdbench.config.kinds.KINDS` it must make; None: any of them.
        given: further settings, which the node may not hold.

    Raises:
        KdbenchError: the constructor's own complaint.
        ConfigError: the node makes nothing that may be made, its settings are not the
            constructor's, or make it fail in another way.
    """
    spelt = node.spelt() if isinstance(node, Node) else node
    path = str(spelt.get("name", "node"))
    checked = check_made(path, spelt, group or group_of(spelt), given)
    try:
        return construct(checked, **given)
    except KdbenchError:
        raise
    except Exception as error:
        said = " ".join(f"{type(error).__name__} {error}".split())
        raise ConfigError(
            f"{checked.target} cannot be built with these settings: {said}"
        ) from error


def construct(node: Node, **given: Any) -> Any:
    """What a checked node describes: nodes inside it, as of a wrapped method, are built first."""
    settings = {key: _value(item) for key, item in node.settings.items()}
    return resolve_name(node.target)(**settings, **given)


def _value(item: Any) -> Any:
    if isinstance(item, Mapping):
        if "_target_" in item:
            return construct(Node.read(item))
        return {key: _value(value) for key, value in item.items()}
    return [_value(value) for value in item] if isinstance(item, list | tuple) else item
