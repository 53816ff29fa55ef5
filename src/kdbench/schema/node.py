"""A node of a configuration, which names the callable that makes an object and its settings."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

TARGET, NAME = "_target_", "name"  # the keys of a node that are no settings


@dataclass(frozen=True)
class Node:
    """A callable of the configuration with its settings; in files it is a mapping."""

    target: str  # dotted path of what is called
    settings: Mapping[str, Any]  # plain data; a node inside, as a wrapper's `inner`, is a mapping
    name: str = ""  # for people, and for cells; "" where it has none

    @classmethod
    def read(cls, node: Mapping[str, Any]) -> "Node":
        """Read a node from a plain mapping."""
        settings = {key: value for key, value in node.items() if key not in (TARGET, NAME)}
        return cls(node.get(TARGET, ""), settings, node.get(NAME, ""))

    def spelt(self) -> dict[str, Any]:
        """Return the plain mapping: target, name and settings."""
        named = {TARGET: self.target, NAME: self.name}
        return {key: value for key, value in named.items() if value} | dict(self.settings)

    def having(self, **settings: Any) -> "Node":
        """Return this node with some settings changed."""
        return replace(self, settings={**self.settings, **settings})
