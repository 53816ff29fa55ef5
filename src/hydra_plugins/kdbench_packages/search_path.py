"""Lets a command of kdbench find the configuration that other packages bring.

Hydra imports every plugin at every start, also of programs that have nothing to do with kdbench.
"""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class PackagesSearchPath(SearchPathPlugin):
    """Where kdbench's own configuration is searched, that of `schema.plugins` is after it."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add a folder for each package that brings one."""
        from kdbench.config.conf_files import conf_dir
        from kdbench.schema.plugins import conf_dirs

        ours = conf_dir().as_uri()
        if any(as_uri(element.path) == ours for element in search_path.get_path()):
            for folder in conf_dirs():
                search_path.append("kdbench-packages", folder.as_uri())


def as_uri(path: str) -> str:
    """A search path's place, which may be a plain path."""
    return Path(path).as_uri() if Path(path).is_absolute() else path
