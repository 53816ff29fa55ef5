"""The one way in from a shell: Hydra composes, and every mistake becomes one clear line."""

import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from itertools import islice, product
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdbench.config.hydra_guard import CALLED, check_called
from kdbench.config.run_config import Check, Config, conf_dir
from kdbench.errors import ConfigError, KdbenchError, nearest
from kdbench.parallel.ranks import RankError
from kdbench.parallel.torchrun import speaks
from kdbench.schema.secrets import masked

INTERRUPTED = 130
# How plain ValueErrors begin that are a command's fault: of hydra/job_logging, and of --run -m.
MISTAKES = ("Unable to configure", "Only one of --")
COHORTS = "hydra_plugins.kdbench_cohort.launcher.CohortLauncher"


def run(config_name: str, check: Check, task: Callable[[Config], object]) -> None:
    """Compose `config_name` from the command line, check it and give it to `task`.

    Exit codes: 0 done, 1 something outside the command is wrong, 2 the command or a
    configuration file is wrong, 130 interrupted.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors over instead of printing ten lines
    failures: list[KdbenchError] = []

    def job(cfg: DictConfig) -> None:
        if failures and isinstance(failures[-1], RankError):
            return  # without the other ranks no further job of a sweep can be done
        try:
            task(check(plain(cfg)))
        except KdbenchError as error:
            failures.append(error)
        except OmegaConfBaseException as error:  # Hydra would print the whole command above it
            line = explain(error, sys.argv[1:], config_name, check)
            failures.append(ConfigError(line))
        except OSError as error:
            failures.append(KdbenchError(describe(error)))
        else:
            return
        print_error(str(failures[-1]))  # at once; the other jobs of a sweep go on

    main = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)
    with one_line_errors(config_name, check):
        check_hydra(config_name, sys.argv[1:])
        main(job)()
    if failures:
        sys.exit(failures[0].exit_code)


def run_together(config_name: str, check: Check, task: Callable[[list[Config]], None]) -> None:
    """Compose every job that the command line describes, check all, and give all to `task`.

    Exit codes as `run`'s.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with one_line_errors(config_name, check):
        try:
            task([check(raw) for raw in compose_jobs(config_name, sys.argv[1:])])
        except KdbenchError as error:
            fail(str(error), error.exit_code)


@contextmanager
def one_line_errors(config_name: str, check: Check) -> Iterator[None]:
    """Leave with one line and an exit code on every mistake."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        fail(explain(error, sys.argv[1:], config_name, check), ConfigError.exit_code)
    except KdbenchError as error:  # a sweep's own, after its jobs
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
    """What the system says, and of which file."""
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"


def check_hydra(config_name: str, arguments: list[str]) -> None:
    """Refuse a command whose files would have Hydra itself call what they name.

    Hydra builds its launcher and its sweeper, which must be plugins, but also callbacks, and what
    is nested in any of them, before a line of ours runs. Logging it sets up once more for each job.

    Raises:
        ConfigError: names the key; or the command is none, which Hydra would say in many lines.
    """
    try:
        with closing(compose_heads(config_name, arguments)) as heads:
            for composed in heads:
                check_head(composed)
    except (HydraException, OmegaConfBaseException, KdbenchError, OSError):
        raise
    except Exception as error:  # Hydra's own assertions, about hydra=null and its like
        raise ConfigError(f"the command makes no sense to Hydra: {error}") from error


def check_head(composed: DictConfig) -> None:
    """Refuse one job's node of Hydra.

    Raises:
        ConfigError: names the key.
    """
    OmegaConf.update(composed, "hydra.runtime.output_dir", ".", force_add=True)  # not known yet
    nodes = {
        name: OmegaConf.to_container(node, resolve=True) if OmegaConf.is_dict(node) else node
        for name in CALLED
        for node in [composed.hydra[name]]
    }
    check_called(nodes, bool(composed.hydra.callbacks), bool(composed.hydra.job.env_set))


def compose_head(config_name: str, arguments: list[str]) -> DictConfig:
    """A command's first job with Hydra's own node; nothing is run."""
    with closing(compose_heads(config_name, arguments)) as heads:
        return next(heads)


def compose_heads(config_name: str, arguments: list[str]) -> Generator[DictConfig]:
    """A command's jobs with Hydra's own node, as many as Hydra reads that of; nothing is run."""
    parser = get_args_parser()
    parser.error = refuse_argument  # type: ignore[method-assign]  # it would print its usage
    given = parser.parse_args(arguments)
    overrides = list(given.overrides)
    if given.config_dir and Path(given.config_dir).is_dir():  # Hydra says what is wrong else
        overrides.append(f"hydra.searchpath=[{Path(given.config_dir).resolve().as_uri()}]")
    folder = str(Path(given.config_path).resolve()) if given.config_path else str(conf_dir())
    name = given.config_name or config_name
    with hydra.initialize_config_dir(folder, version_base="1.3"):
        composed = first_job(name, overrides)
        yield composed
        if OmegaConf.select(composed, "hydra.launcher._target_") == COHORTS:
            return  # it leaves the node of later jobs alone
        for job in islice(product(*axes(composed, overrides).values()), 1, None):
            yield hydra.compose(name, list(job), return_hydra_config=True)


def refuse_argument(message: str) -> NoReturn:
    """What argparse says of a command line, as an error of ours."""
    raise ConfigError(message)


def compose_jobs(config_name: str, arguments: list[str]) -> list[dict[str, Any]]:
    """Every job of a command, composed as Hydra's sweeper would; nothing is run."""
    jobs = product(*swept(config_name, arguments).values())
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return [plain(hydra.compose(config_name, list(job))) for job in jobs]


def swept(config_name: str, arguments: list[str]) -> dict[str, list[str]]:
    """The overrides of a command by their key, one for each value; the jobs are their product.

    A sweep stands in the command, in `hydra.sweeper.params` of the file that it names, or in both;
    the command wins.
    """
    overrides = [text for text in arguments if not text.startswith("-")]
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return axes(first_job(config_name, overrides), overrides)


def first_job(config_name: str, overrides: list[str]) -> DictConfig:
    """A command's first job with Hydra's own node, where Hydra is initialized."""
    first = [values_of(override)[0] for override in parse(overrides)]
    return hydra.compose(config_name, first, return_hydra_config=True)


def parse(overrides: list[str]) -> list[Override]:
    """Overrides as Hydra reads them, which knows what a `glob` stands for once initialized."""
    loader = GlobalHydra.instance().config_loader()
    return OverridesParser.create(loader).parse_overrides(overrides)


def axes(head: DictConfig, overrides: list[str]) -> dict[str, list[str]]:
    """As `swept`, where the command's first job is composed."""
    params = OmegaConf.select(head, "hydra.sweeper.params") or {}
    lines = [f"{key}={value}" for key, value in params.items()] + overrides
    return {one.get_key_element(): values_of(one) for one in parse(lines)}


def values_of(override: Override) -> list[str]:
    """An override for each of its values.

    Raises:
        ConfigError: it has none, as a `glob` that nothing answers to.
    """
    if not override.is_sweep_override():
        return [override.input_line or ""]
    key = override.get_key_element()
    if not (values := [f"{key}={value}" for value in override.sweep_string_iterator()]):
        raise ConfigError(f"{override.input_line} stands for no value")
    return values


def compose_group(group: str, name: str, *overrides: str) -> dict[str, Any]:
    """The node that a command with `group=name` would have."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return plain(hydra.compose("config", [f"{group}={name}", *overrides]))[group]


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain containers, every interpolation resolved."""
    container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def explain(error: Exception, arguments: list[str], config_name: str, check: Check) -> str:
    """One line for an error of Hydra or OmegaConf, with the nearest valid name where there is one.

    Hydra does not say which key was meant. Composing once more with every override forced in
    lets the schema check find the mistaken key and name its neighbour.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.removesuffix(".yaml").rpartition("/")
        options = error.options or [path.stem for path in (conf_dir() / group).glob("*.yaml")]
        return f"unknown {group} '{name}': {nearest(name, options)}"
    overrides = [text for text in arguments if not text.startswith("-")]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = hydra.compose(config_name, [forced(override) for override in parsed])
        check(plain(composed))
    except ConfigError as mistake:
        return str(mistake)
    except Exception:  # of this second attempt; the first one is what must be told
        pass
    first_lines = str(error).split("\nSee ")[0].split("\n")[:2]
    return " ".join(" ".join(first_lines).split())


def forced(override: Override) -> str:
    """An override that adds its key where the configuration lacks it; of a sweep, one value."""
    key = override.get_key_element()
    group = override.key_or_group
    line = (override.input_line or "").lstrip("+")
    if override.is_delete() or "@" in key or group.startswith("hydra"):
        return line
    if override.is_sweep_override():
        line = f"{key}={next(iter(override.sweep_string_iterator()))}"
    is_group = (conf_dir() / group).is_dir()
    return line if is_group and group != "experiments" else f"+{'' if is_group else '+'}{line}"


def print_error(line: str) -> None:
    """One line on standard error, without the secrets of the environment; of all ranks once."""
    if speaks(line):
        text = masked(" ".join(line.split()))
        shown = "".join(letter if letter.isprintable() else "?" for letter in text)  # no escapes
        print(f"kdbench: error: {shown}", file=sys.stderr)


def fail(line: str, exit_code: int) -> NoReturn:
    """Print the line and leave."""
    print_error(line)
    sys.exit(exit_code)
