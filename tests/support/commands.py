"""Commands of kdbench as a test runs them, and where the checkout is."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig

from kdbench.config import conf_nodes, hydra_cli
from kdbench.config.composing import Composer, bare
from kdbench.config.conf_files import conf_dir
from kdbench.config.hydra_cli import compose_group
from kdbench.config.run_config import check_evaluate, check_train

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def error_line(self) -> str:
        """The one line that a failed command prints."""
        lines = self.err.strip().splitlines()
        assert self.code != 0
        assert len(lines) == 1, self.err
        assert lines[0].startswith("kdbench: error: ")
        return lines[0].removeprefix("kdbench: error: ")


def compose_method(name: str, *overrides: str) -> dict:
    """The node of conf/method/<name>.yaml as a command would compose it."""
    return copy.deepcopy(_composed_method(name, overrides))


@cache  # the tests of methods ask a thousand times
def _composed_method(name: str, overrides: tuple[str, ...]) -> dict:
    if overrides:
        return compose_group("method", name, *overrides)
    # tests/config/test_recipes.py holds this against Hydra, which takes 0.1 s each
    return conf_nodes.without_inferred(conf_nodes.compose("method", name))


Command = Callable[..., Result]


def compose(*overrides: str, name: str = "config"):
    """The checked settings of a command, its files composed once as for the jobs of a sweep."""
    composer = Composer(name, [])
    chosen = tuple(text for text in overrides if composer.chooses_files(text))
    config = copy.deepcopy(_composed_files(name, chosen, conf_dir()))
    values = composer.parse([text for text in overrides if text not in chosen])
    ConfigLoaderImpl._apply_overrides_to_config(values, config)
    return (check_train if name == "config" else check_evaluate)(hydra_cli.plain(config))


@cache
def _composed_files(name: str, chosen: tuple[str, ...], _: Path) -> DictConfig:
    return bare(Composer(name, []).compose([*chosen]))
