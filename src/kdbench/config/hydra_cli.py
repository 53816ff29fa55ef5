"""The command-line entry: Hydra composes, and every mistake becomes one clear line."""

import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice, product
from pkgutil import resolve_name
from typing import Any, NoReturn, TypeVar

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdbench.config.arguments import masked_output, tell
from kdbench.config.command_line import arranged, refuse_several, spelt
from kdbench.config.composing import (
    VERSION_BASE,
    ComposedJob,
    Composer,
    bare,
    compose_command,
    read_command,
    values_of,
)
from kdbench.config.conf_files import conf_dir
from kdbench.config.conf_nodes import without_inferred
from kdbench.config.hydra_guard import COHORTS
from kdbench.config.one_by_one import run_jobs
from kdbench.config.run_config import without_start
from kdbench.errors import ConfigError, KdbenchError, nearest
from kdbench.parallel.torchrun import speaks
from kdbench.schema.secrets import variable

INTERRUPTED = 130
MISTAKES = ("Only one of --", "The --resolve flag")  # beginnings of Hydra's errors of a command
SHOWN = ("help", "hydra_help", "cfg", "resolve", "info")  # arguments that make Hydra print
S = TypeVar("S")  # the settings that a command has
Check = Callable[[Mapping[str, Any]], S]
TRIED = 64  # jobs of a sweep that are tried, to find the one with a mistake
# This holds wherever a configuration is resolved, including when Hydra prints it.
OmegaConf.register_new_resolver("oc.env", variable, replace=True)


def run(config_name: str, check: Check[S], task: Callable[[S], object]) -> None:
    """Compose `config_name` from the command line, check it and give it to `task`.

    Hydra only composes. kdbench itself starts the jobs, so that Hydra makes no callback, log
    handler, launcher or folder, and nothing is read again after it was checked.

    Exit codes: 0 done, 1 something outside the command is wrong, 2 the command or a
    configuration file is wrong, 130 interrupted.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing ten lines

    def run_job(job: ComposedJob) -> KdbenchError | None:
        try:
            task(check(plain(job.config)))
        except KdbenchError as error:
            return error
        except OmegaConfBaseException as error:
            return ConfigError(explain(error, sys.argv[1:], config_name, check))
        except OSError as error:
            return KdbenchError(describe(error))
        return None

    with one_line_errors(config_name, check):
        sys.argv[1:] = understood(config_name, sys.argv[1:])
        given = read_command(sys.argv[1:])
        if any(getattr(given, name) for name in SHOWN):
            with masked_output():
                show(config_name, given)
            return
        command = compose_command(config_name, given)
        if command.cohorts:
            launcher = resolve_name(COHORTS)(**command.settings)
            launcher.launch([check(plain(job.config)) for job in command.jobs])
            return
        fail_fast = bool(command.settings.get("fail_fast"))
        failures = run_jobs(command.jobs, run_job, print_error, fail_fast)
    if failures:
        sys.exit(failures[0].exit_code)


def run_together(config_name: str, check: Check[S], task: Callable[[list[S]], None]) -> None:
    """Compose every job that the command line describes, check all, and give all to `task`.

    The exit codes are those of `run`.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with one_line_errors(config_name, check):
        try:
            words = arranged(sys.argv[1:])
            sys.argv[1:] = spelt(words, containers(compose_head(config_name, words)))
            task([check(raw) for raw in compose_jobs(config_name, sys.argv[1:])])
        except KdbenchError as error:
            fail(str(error), error.exit_code)


@contextmanager
def one_line_errors(config_name: str, check: Check[object]) -> Iterator[None]:
    """Exit with one line and an exit code on every mistake."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        fail(explain(error, sys.argv[1:], config_name, check), ConfigError.exit_code)
    except KdbenchError as error:  # from a sweep, after its jobs
        fail(str(error), error.exit_code)
    except KeyboardInterrupt as stop:
        fail(str(stop) or "interrupted", INTERRUPTED)
    except ValueError as error:
        if not str(error).startswith(MISTAKES):
            raise
        fail(f"{error}{f' ({error.__cause__})' if error.__cause__ else ''}", ConfigError.exit_code)
    except OSError as error:
        fail(describe(error), KdbenchError.exit_code)


def describe(error: OSError) -> str:
    """Return the system's message with the file's name."""
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"


def understood(config_name: str, arguments: list[str]) -> list[str]:
    """Return a command's arguments as Hydra should read them.

    Raises:
        ConfigError: the command is invalid, or gives several values for one run.
    """
    words = arranged(arguments)
    given = read_command(words)
    composer = Composer(config_name, given.overrides, given.config_dir)
    if not given.multirun and composer.head().hydra.mode is not RunMode.MULTIRUN:
        refuse_several(words)
    first = [values_of(override)[0] for override in composer.parse(given.overrides)]
    return spelt(words, containers(composer.compose(first)))


def containers(composed: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as plain containers, unresolved."""
    found = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def show(config_name: str, given: Namespace) -> None:
    """Print a command's configuration, or let Hydra print help on it.

    Raises:
        ConfigError: Hydra, which composes on its own here, would read files of others.
    """
    composed = Composer(config_name, given.overrides, given.config_dir).compose(given.overrides)
    if given.cfg:
        print(yaml_of(composed, given), end="")
        return
    if given.config_dir is not None:
        raise ConfigError("--config-dir does not go with what Hydra prints but --cfg: leave it out")
    folder = str(conf_dir())
    main = hydra.main(version_base=VERSION_BASE, config_path=folder, config_name=config_name)
    main(lambda _: None)()


def yaml_of(composed: DictConfig, given: Namespace) -> str:
    """Return the part of a composed configuration that `--cfg` asks for, as YAML."""
    every, hydras = given.cfg == "all", given.cfg == "hydra"
    keys = [str(key) for key in composed if every or (key == "hydra") == hydras]
    node = OmegaConf.masked_copy(composed, keys)
    if given.resolve:
        OmegaConf.resolve(node)
    if given.package in (None, "_global_"):
        return OmegaConf.to_yaml(node)
    inner = OmegaConf.select(node, given.package)
    if OmegaConf.is_config(inner):
        return f"# @package {given.package}\n{OmegaConf.to_yaml(inner)}"
    return f"{inner}\n"


def compose_head(config_name: str, overrides: list[str]) -> DictConfig:
    """Compose what a command's jobs have in common, with Hydra's own node; nothing is run."""
    return Composer(config_name, overrides).head()


def compose_jobs(config_name: str, arguments: list[str]) -> list[dict[str, Any]]:
    """Compose every job of a command as for a sweep; nothing is run."""
    composer = Composer(config_name, [text for text in arguments if not text.startswith("-")])
    return [plain(job.config) for job in composer.jobs(composer.head())]


def swept(config_name: str, arguments: list[str]) -> dict[str, list[str]]:
    """Return a command's overrides by key, one for each value; the jobs are their product."""
    composer = Composer(config_name, [text for text in arguments if not text.startswith("-")])
    return composer.axes(composer.head())


def compose_group(group: str, name: str, *overrides: str) -> dict[str, Any]:
    """Compose the node of a command with `group=name`; for a student, the node that makes it."""
    found = Composer("config", []).compose([f"{group}={name}", *overrides])
    node = plain(bare(found))[group]
    return without_start(node) if group == "student" else node


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the composed configuration as plain containers, with interpolations resolved."""
    container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {
        str(key): without_inferred(value) if key == "method" else value
        for key, value in container.items()
    }


def explain(error: Exception, arguments: list[str], config_name: str, check: Check[object]) -> str:
    """Return one line for an error of Hydra or OmegaConf, with the nearest valid name if any.

    Hydra does not name the mistaken key. After a second composition with every override forced in,
    the schema check finds that key, in whichever job it is, and names its neighbour.
    """
    for cause in (error.__cause__, error.__context__):
        if isinstance(cause, KdbenchError):  # of a resolver of ours
            return str(cause)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.removesuffix(".yaml").rpartition("/")
        options = error.options or [path.stem for path in (conf_dir() / group).glob("*.yaml")]
        return f"unknown {group} '{name}': {nearest(name, options)}"
    overrides = [text for text in arguments if not text.startswith("-")]
    if line := misspelt(error, config_name, overrides):
        return line
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        with hydra.initialize_config_dir(str(conf_dir()), version_base=VERSION_BASE):
            jobs = product(*map(forced, parsed))
            composed = [plain(hydra.compose(config_name, list(job))) for job in islice(jobs, TRIED)]
        for job in composed:
            check(job)
    except ConfigError as mistake:
        return str(mistake)
    except Exception:  # from this second attempt; the first error is reported
        pass
    first_lines = text_of(error).split("\nSee ")[0].split("\n")[:2]
    return " ".join(" ".join(first_lines).split())


def text_of(error: BaseException) -> str:
    """Return what an error says, or else the first of its causes that says something."""
    cause = error.__cause__ or error.__context__
    return str(error).strip() or (text_of(cause) if cause else type(error).__name__)


def misspelt(error: Exception, config_name: str, overrides: list[str]) -> str | None:
    """The line for a key that is nearly one of its node's, which is told without importing torch.

    None where no key of the composed node is near: its target may take more than its file sets.
    """
    found = re.match(r"Could not override '([^']+)\.([^'.]+)'", str(error))
    if found is None:
        return None
    path, key = found.groups()
    others = [text for text in overrides if not text.lstrip("+~").startswith(f"{path}.{key}=")]
    try:
        node = OmegaConf.select(compose_head(config_name, others), path)
    except Exception:  # of another word; the error at hand is told first
        return None
    if not isinstance(node, DictConfig) or key in node:  # a mapping there, given a key it has not
        return None
    hint = nearest(key, map(str, node))
    return f"unknown key '{path}.{key}': {hint}" if hint.startswith("did") else None


def forced(override: Override) -> list[str]:
    """Return, for each value, an override that adds its key where the configuration lacks it."""
    group = override.key_or_group
    lines = [line.lstrip("+") for line in values_of(override)]
    if override.is_delete() or "@" in override.get_key_element() or group.startswith("hydra"):
        return lines
    is_group = (conf_dir() / group).is_dir()
    sign = "" if is_group and group != "experiments" else "+" if is_group else "++"
    return [f"{sign}{line}" for line in lines]


def print_error(line: str) -> None:
    """Print one line on standard error, without the environment's secrets, once for all ranks."""
    if speaks(line):
        tell(f"error: {line}")


def fail(line: str, exit_code: int) -> NoReturn:
    """Print the line and exit."""
    print_error(line)
    sys.exit(exit_code)
