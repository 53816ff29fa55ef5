"""Keys and tokens in the environment: their values reach no file of a run and no line of output."""

import os
import re
from collections.abc import Mapping

from kdbench.errors import ConfigError

_WORDS = "KEYS?|KEY_ID|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PAT|CREDENTIALS?"
_NAMES = re.compile(rf"(^|_)({_WORDS})$", re.IGNORECASE)
SHORTEST = 8  # characters; a shorter value, such as "true", would be found in honest text


def secrets() -> dict[str, str]:
    """The values of environment variables that are called as secrets are, by name."""
    return {
        name: value
        for name, value in os.environ.items()
        if _NAMES.search(name) and len(value) >= SHORTEST
    }


def masked(text: str) -> str:
    """The text with the name of the variable in the place of each secret."""
    for name, value in secrets().items():
        text = text.replace(value, f"<{name}>")
    return text


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
