"""Keys and tokens in the environment: their values reach no file of a run and no line of output."""

import os
import re
from collections.abc import Mapping
from typing import Any

from kdbench.errors import ConfigError

# What variables are called that hold secrets: some words wherever they stand, others where they
# are a whole word, or the last one.
_ANYWHERE = (
    "TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASSCODE|CREDENTIAL|API_?KEY|ACCESS_?KEY"
    "|PRIVATE_?KEY|AUTHORIZATION|WEBHOOK|COOKIE|DATABASE_?URL"
)
_NAMES = re.compile(
    rf"{_ANYWHERE}|(^|[_.-])(KEYS?|PWD)([_.-]|$)|(^|[_.-])(PAT|PASS|AUTH|DSN|PIN|SAS|JWT)$"
    r"|[A-Z]PWD$",
    re.IGNORECASE,
)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_NO_SECRET = ("PWD", "OLDPWD")  # the shell's folders
# User and password of an address, or a token in their place.
_ADDRESS = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^\s/?#'\"]+@", re.IGNORECASE)
# A secret as the value of an address's query.
_QUERY = re.compile(rf"(?P<name>[?&;]([\w.-]*({_ANYWHERE}|KEY|SIG|SIGNATURE|PWD|PASS|AUTH))=)"
                    r"[^\s&;#'\"]+", re.IGNORECASE)  # fmt: skip
UNSET = object()
SHORTEST = 8  # characters; a shorter value, such as "true", would be found in honest text


def looks_secret(name: str) -> bool:
    """Return whether an environment variable has the name of a secret."""
    return name not in _NO_SECRET and bool(_NAMES.search(_CAMEL.sub("_", name)))


def variable(name: str, default: object = UNSET) -> object:
    """Resolve `${oc.env:NAME}` in a configuration, which is written to files and to W&B.

    Raises:
        ConfigError: the variable is called as secrets are, whatever it holds, or is not set.
    """
    if looks_secret(name):
        raise ConfigError(
            f"${{oc.env:{name}}} is not allowed: {name} is called as secrets are, and a "
            "configuration is written to the run's files: leave it out"
        )
    if name in os.environ:
        return os.environ[name]
    if default is UNSET:
        raise ConfigError(f"${{oc.env:{name}}}: the environment variable {name} is not set")
    return None if default is None else str(default)


def secrets() -> dict[str, str]:
    """Return the environment variables with the names of secrets."""
    return {
        name: value
        for name, value in os.environ.items()
        if looks_secret(name) and len(value) >= SHORTEST
    }


def masked(text: str) -> str:
    """Replace each secret in a text by its variable's name, and remove passwords."""
    for name, value in secrets().items():
        text = text.replace(value, f"<{name}>")
    text = _ADDRESS.sub(lambda found: f"{found['scheme']}<user>@", text)
    return _QUERY.sub(lambda found: f"{found['name']}<secret>", text)


def masked_node(node: Any) -> Any:
    """Return a configuration without passwords in its addresses, to be shown and kept."""
    if isinstance(node, Mapping):
        return {key: masked_node(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [masked_node(item) for item in node]
    return masked(node) if isinstance(node, str) else node


def refuse_secrets(node: object) -> None:
    """Refuse a configuration that holds a secret, as `${oc.env:WANDB_API_KEY}` puts it there.

    A configuration is written to config.json, to the record and to W&B.

    Raises:
        ConfigError: names the key and the variable, never the value.
    """
    known = secrets()
    if known:
        _refuse("", node, known)


def _refuse(path: str, node: object, known: Mapping[str, str]) -> None:
    if isinstance(node, Mapping):
        for key, value in node.items():
            _refuse(path or "a name", str(key), known)
            _refuse(f"{path}.{key}".lstrip("."), value, known)
    elif isinstance(node, list | tuple):
        for i, item in enumerate(node):
            _refuse(f"{path}[{i}]", item, known)
    else:
        text = str(node)
        for name, value in known.items():
            if value in text:
                raise ConfigError(
                    f"{path} holds the value of the environment variable {name}, which would be "
                    "written to the run's files: leave it out"
                )
