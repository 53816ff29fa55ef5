"""Composition of a command's configurations by Hydra, of which nothing else is used.

No global state of Hydra's is used. Its own node, of the command and of every job, is checked by
`hydra_guard`, and only literals are read from it.
"""

import copy
import os
from argparse import Namespace
from collections.abc import Mapping
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobRuntime, setup_globals
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from kdbench.config.conf_files import conf_dir
from kdbench.config.hydra_guard import check_called, check_key, launcher_settings
from kdbench.errors import ConfigError
from kdbench.schema.plugins import conf_dirs

VERSION_BASE = "1.3"
REFUSED = {  # arguments that Hydra offers
    "experimental_rerun": "it would run what a file holds; give the command again",
    "config_path": "it would import what it names; --config-dir DIR adds a folder of files",
    "config_name": "kdbench has one configuration; --config-dir DIR adds a folder of files",
    "shell_completion": "kdbench has none",
}


def read_command(arguments: list[str]) -> Namespace:
    """Parse the arguments with Hydra.

    Raises:
        ConfigError: they are invalid (in one line, unlike Hydra's), or ask for features of Hydra's
            that kdbench does not offer.
    """
    parser = get_args_parser()
    parser.error = refuse_argument  # type: ignore[method-assign]  # it would print its usage
    given = parser.parse_args(arguments)
    for name, why in REFUSED.items():
        if getattr(given, name):
            raise ConfigError(f"--{name.replace('_', '-')} is not allowed: {why}")
    if given.run and given.multirun:
        raise ConfigError("--run and --multirun exclude each other: leave one out")
    return given


def refuse_argument(message: str) -> NoReturn:
    """Raise argparse's complaint about a command line as an error of ours."""
    raise ConfigError(message)


def loader_of(config_dir: str | None = None) -> ConfigLoaderImpl:
    """Return a loader of kdbench's files, those of `packages`, and then those of another folder.

    Raises:
        ConfigError: the folder does not exist.
    """
    version.setbase(VERSION_BASE)
    setup_globals()
    if config_dir is None:
        return _own_loader(conf_dir(), tuple(conf_dirs()))
    places = create_config_search_path(str(conf_dir()))
    if not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir} is no folder: name one")
    schema = SearchPathQuery(provider="schema")
    places.prepend("command-line", f"file://{Path(config_dir).absolute()}", schema)
    return _reading_once(places)


@cache
def _own_loader(conf: Path, others: tuple[Path, ...]) -> ConfigLoaderImpl:
    """Return the loader of a process, of these folders: a command composes several times."""
    return _reading_once(create_config_search_path(str(conf)))


def _reading_once(places: ConfigSearchPath) -> ConfigLoaderImpl:
    loader = ConfigLoaderImpl(places)
    loader.repository = ReadOnce(places)
    return loader


@lru_cache(maxsize=4)
def _loaded(
    loader: ConfigLoaderImpl,
    config_name: str,
    overrides: tuple[str, ...],
    mode: RunMode,
    state: tuple[str | None, str],
) -> DictConfig:
    """Let Hydra compose; a command asks for the same again, before it is read and after.

    `state` is what else Hydra writes into its node.
    """
    single = mode is RunMode.RUN
    return loader.load_configuration(
        config_name, [*overrides], mode, validate_sweep_overrides=single
    )


def job_name() -> str | None:
    """Return what Hydra calls a job, once anything in this process was initialized."""
    name: str | None = OmegaConf.select(JobRuntime.instance().conf, "name")
    return name


class ReadOnce(ConfigRepository):
    """Files of configurations, each read once; Hydra reads them all again for every job."""

    def __init__(self, places: ConfigSearchPath) -> None:
        super().__init__(places)
        self.known: dict[str, ConfigResult | None] = {}

    def __deepcopy__(self, memo: object) -> "ReadOnce":
        return self  # Hydra copies it for every job, to guard what is never changed here

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Return a copy of a file's content, since Hydra changes it."""
        if config_path not in self.known:
            self.known[config_path] = super().load_config(config_path=config_path)
        return copy.deepcopy(self.known[config_path])


def own_node(config_name: str) -> dict[Any, Any]:
    """Return Hydra's node for a command without arguments, with interpolations unresolved."""
    return _own_node(config_name, job_name())


@cache
def _own_node(config_name: str, job: str | None) -> dict[Any, Any]:
    found = loader_of().load_configuration(config_name, [], RunMode.RUN)
    node = OmegaConf.to_container(found.hydra)
    assert isinstance(node, dict)
    return node


class Composer:
    """A composer of the configurations of a command.

    Args:
        config_name: the file of conf/ from which all start.
        overrides: the command's overrides.
        config_dir: a further folder of files.

    Raises:
        ConfigError: an override sets a forbidden key of Hydra's, or has no value.
    """

    def __init__(
        self, config_name: str, overrides: list[str], config_dir: str | None = None
    ) -> None:
        self.config_name, self.overrides = config_name, overrides
        self.loader = loader_of(config_dir)
        for override in self.parse(overrides):
            values_of(override)

    def parse(self, overrides: list[str]) -> list[Override]:
        """Parse overrides with Hydra, which expands a `glob`.

        Raises:
            ConfigError: one sets a forbidden key of Hydra's, or gives several values to such a key.
        """
        parsed = OverridesParser.create(self.loader).parse_overrides(overrides)
        for override in parsed:
            check_key(override.key_or_group)
            if override.is_hydra_override() and override.is_sweep_override():
                raise ConfigError(f"{override.input_line} is not allowed: give one value")
        return parsed

    def compose(self, overrides: list[str], mode: RunMode = RunMode.RUN) -> DictConfig:
        """Compose one configuration with Hydra's own node, and check that node.

        With `RunMode.MULTIRUN`, keys with several values are ignored.

        Raises:
            ConfigError: the node asks for features that kdbench does not offer, or is invalid.
        """
        state = job_name(), os.getcwd()
        try:
            found = copy.deepcopy(
                _loaded(self.loader, self.config_name, tuple(overrides), mode, state)
            )
            node = OmegaConf.to_container(found.hydra)
        except (HydraException, OmegaConfBaseException, OSError):
            raise
        except Exception as error:  # its own assertions, of `hydra: null` and its like
            raise ConfigError(f"the command makes no sense to Hydra: {error}") from error
        check_called(node, own_node(self.config_name))
        return found

    def head(self) -> DictConfig:
        """Compose the configuration that the command's jobs have in common."""
        return self.compose(self.overrides, RunMode.MULTIRUN)

    def axes(self, head: DictConfig) -> dict[str, list[str]]:
        """Return the overrides by key, one for each value; the jobs are their product.

        A sweep is given in the command, in `hydra.sweeper.params` of its file, or in both; the
        command wins.
        """
        params = head.hydra.sweeper.params or {}
        lines = [f"{key}={value}" for key, value in params.items()] + self.overrides
        return {one.get_key_element(): values_of(one) for one in self.parse(lines)}

    def jobs(self, head: DictConfig) -> "list[ComposedJob]":
        """Compose the jobs of a sweep.

        Jobs that differ in values alone, such as seeds, share what their files are composed to.
        """
        composed: dict[tuple[str, ...], DictConfig] = {}
        jobs = []
        for job in product(*self.axes(head).values()):
            chosen = tuple(text for text in job if self.chooses_files(text))
            if chosen not in composed:
                composed[chosen] = bare(self.compose([*chosen]))
            config = copy.deepcopy(composed[chosen])
            values = [self.parsed(text) for text in job if text not in chosen]
            ConfigLoaderImpl._apply_overrides_to_config(values, config)
            jobs.append(ComposedJob([*job], config))
        return jobs

    @cache  # noqa: B019  # a composer lives as long as its command
    def parsed(self, text: str) -> Override:
        """Parse an override of one value, once for all jobs."""
        return self.parse([text])[0]

    def chooses_files(self, text: str) -> bool:
        """Return whether an override takes part in Hydra's choice of files, or is for its node."""
        override = self.parsed(text)
        grouped = self.loader.repository.group_exists(override.key_or_group)
        return override.is_hydra_override() or (grouped and not isinstance(override.value(), dict))


class ComposedJob(NamedTuple):
    """A run of a command."""

    overrides: list[str]
    config: DictConfig  # without Hydra's own node


class ComposedCommand(NamedTuple):
    """The runs of a command, and how they are launched."""

    jobs: list[ComposedJob]
    cohorts: bool = False  # its runs train side by side, else one by one
    settings: Mapping[str, Any] = MappingProxyType({})  # of the launcher


def compose_command(config_name: str, given: Namespace) -> ComposedCommand:
    """The runs of a command, and how they are launched."""
    composer = Composer(config_name, given.overrides, given.config_dir)
    head = composer.head()
    if not given.multirun and head.hydra.mode is not RunMode.MULTIRUN:
        composed = bare(composer.compose(given.overrides))
        return ComposedCommand([ComposedJob(given.overrides, composed)])
    launcher = launcher_settings(OmegaConf.to_container(head.hydra.launcher))
    return ComposedCommand(composer.jobs(head), *launcher)


def bare(composed: DictConfig) -> DictConfig:
    """Return a composed configuration without Hydra's own node."""
    with open_dict(composed):
        del composed["hydra"]
    return composed


def values_of(override: Override) -> list[str]:
    """Return an override for each value of an override.

    Raises:
        ConfigError: it has no value, such as a `glob` without matches.
    """
    if not override.is_sweep_override():
        return [override.input_line or ""]
    key = override.get_key_element()
    if not (values := [f"{key}={value}" for value in override.sweep_string_iterator()]):
        raise ConfigError(f"{override.input_line} stands for no value")
    return values
