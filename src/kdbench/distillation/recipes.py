"""A recipe by its name in conf/method, for people with a loop of their own."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kdbench.assembly.make import make
from kdbench.config import conf_nodes
from kdbench.config.method_files import read_page
from kdbench.errors import ConfigError, nearest
from kdbench.methods.base import Method


class MethodInfo(NamedTuple):
    """What a method of conf is."""

    name: str
    kind: str  # such as "logit" or "feature"
    title: str
    paper: str


def list_methods() -> list[MethodInfo]:
    """Every method of conf and of installed packages, by name."""
    found = []
    for name in sorted(conf_nodes.names("method")):
        page = read_page(conf_nodes.text("method", name) or "")
        found.append(MethodInfo(name, page.kind, page.title, page.paper))
    return found


def method_of(method: str | Method, settings: Mapping[str, Any]) -> Method:
    """The method that a name and settings describe; of a wrapper, `inner` holds those of its inner.

    Raises:
        ConfigError: no method is called so, or a setting is unknown or ill-typed.
    """
    if isinstance(method, Method):
        if settings:
            raise ConfigError(
                f"{next(iter(settings))}=... is for a method that is named: give the Method its "
                "settings when you make it"
            )
        return method
    known = conf_nodes.compose("method", method)
    if known is None:
        raise ConfigError(
            f"unknown method '{method}': {nearest(method, conf_nodes.names('method'))}"
        )
    node = conf_nodes.merged(conf_nodes.without_inferred(known), settings)
    made: Method = make(node, "method")
    return made
