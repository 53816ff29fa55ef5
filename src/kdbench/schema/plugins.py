"""Installed packages of others, whose code and configuration stand beside kdbench's own.

A package asks for it itself, in its pyproject.toml, and is trusted because somebody has installed
it; nothing that is configured, downloaded or sent in can do that:

    [project.entry-points."kdbench.schema.plugins"]
    mylab = "mylab"
"""

from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from kdbench.errors import ConfigError

GROUP = "kdbench.schema.plugins"


@cache
def packages() -> dict[str, str]:
    """Return the version of each package by its import name.

    Raises:
        ConfigError: an installed distribution asks for something else than a package.
    """
    found = {}
    for entry in entry_points(group=GROUP):
        owner = entry.dist.name if entry.dist else entry.name
        if not entry.value.isidentifier():
            raise ConfigError(
                f"{owner} asks for {entry.value!r} in its entry point {GROUP}, which must be the "
                f"name of one package, such as mylab: mend it, or pip uninstall {owner}"
            )
        found[entry.value] = entry.dist.version if entry.dist else ""
    return dict(sorted(found.items()))


def conf_dirs() -> list[Path]:
    """Return the folders conf/ of the packages that have one; nothing is imported."""
    specs = [find_spec(name) for name in packages()]
    places = [at for spec in specs if spec for at in spec.submodule_search_locations or ()]
    return [folder for folder in (Path(at, "conf") for at in places) if folder.is_dir()]
