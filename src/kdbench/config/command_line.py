"""A command's arguments, quoted for Hydra, whose grammar allows few characters unquoted."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from kdbench.config.composing import refuse_argument
from kdbench.config.conf_files import conf_dir
from kdbench.config.run_config import takes_text
from kdbench.errors import ConfigError
from kdbench.schema.plugins import conf_dirs

BRACKETS = {"[": "]", "{": "}", "(": ")"}
FIRST_SEED = 1000  # of the run that conf/teacher/NAME.yaml names; further teachers count up


def arranged(arguments: Sequence[str]) -> list[str]:
    """Return a command's arguments as Hydra can read them: flags first, and values quoted.

    Hydra allows no override after a flag between others.

    Raises:
        ConfigError: an argument is neither a flag nor a setting.
    """
    parser = get_args_parser()
    parser.error = refuse_argument  # type: ignore[method-assign]  # it would print its usage
    overrides = Counter(parser.parse_intermixed_args(list(arguments)).overrides)
    flags, words = [], []
    for word in arguments:
        if overrides[word]:
            overrides[word] -= 1
            words += numbered(quoted(word))
        else:
            flags.append(word)
    return [*flags, *words]


def read(override: str) -> Override | None:
    """Parse an override with Hydra; None where it cannot."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def quoted(override: str) -> str:
    """Return an override with quotes around each value that Hydra cannot read without them.

    Raises:
        ConfigError: it is not KEY=VALUE.
    """
    if read(override) is not None:
        return override
    key, equals, value = override.partition("=")
    if not equals or read(f"{key}=x") is None:
        raise ConfigError(f"'{override}' is no setting: write KEY=VALUE, such as method=kd seed=0")
    return f"{key}={','.join(readable(part) for part in parts(value))}"


def readable(value: str) -> str:
    """Return a value, or the items of a list, in quotes where Hydra needs them."""
    if read(f"key={value}") is not None:
        return value
    if value[0] == "[" and value[-1] == "]":
        return f"[{','.join(readable(part) for part in parts(value[1:-1]))}]"
    return in_quotes(value)


def in_quotes(value: str) -> str:
    """Return text in Hydra's quotes."""
    return QuotedString(value, Quote.single).with_quotes()


def parts(value: str) -> list[str]:
    """Split a value at its commas outside quotes and brackets; if one is open, return it whole."""
    found, closing = [""], ""  # `closing` holds the ends of open brackets, innermost last
    for letter in value:
        if letter == "," and not closing:
            found.append("")
            continue
        if closing and letter == closing[-1]:
            closing = closing[:-1]
        elif letter in "'\"" and not found[-1].strip():
            closing += letter
        elif letter in BRACKETS and closing[-1:] not in ("'", '"'):
            closing += BRACKETS[letter]
        found[-1] += letter
    if closing or len(found) == 1:
        return [value]
    return [part.strip() for part in found]


def numbered(override: str) -> list[str]:
    """Split an override of `teacher` that names one several times into distinct overrides.

    The second resnet20 is called resnet20_2, and by default is the run of the next seed.

    Raises:
        ConfigError: a teacher named twice is not a network of its name.
    """
    found = read(override)
    names = found.value() if found is not None and found.key_or_group == "teacher" else None
    if not isinstance(names, list) or len(set(map(str, names))) == len(names):
        return [override]
    assert found is not None
    more, counts = [], Counter[str]()
    for name in map(str, names):
        counts[name] += 1
        if counts[name] > 1:
            if not is_file("student", name):
                raise ConfigError(
                    f"teacher={name} is named twice: give each of the two a name in a file of your "
                    "own, as conf/teacher/three_resnet56.yaml does"
                )
            own, seed = f"teacher.{name}_{counts[name]}", FIRST_SEED + counts[name] - 1
            more += [
                f"+student@{own}.network={name}",
                f"+{own}.checkpoint='${{dataset.name}}-none-{name}-ce-s{seed}'",
                f"+{own}.passport=null",
            ]
    head = override.partition("=")[0]
    return [f"{head}=[{','.join(counts)}]", *more]


def is_file(group: str, name: str) -> bool:
    """Return whether a group has a file of that name, ours or one of an installed package."""
    return any((folder / group / f"{name}.yaml").is_file() for folder in (conf_dir(), *conf_dirs()))


def spelt(arguments: Iterable[str], config: Mapping[str, Any]) -> list[str]:
    """Quote values that Hydra would read as numbers although their keys take text.

    Args:
        arguments: the result of `arranged`.
        config: the configuration that they compose, as plain containers.
    """
    return [_spelt(word, config) for word in arguments]


def _spelt(word: str, config: Mapping[str, Any]) -> str:
    override = None if word.startswith("-") else read(word)
    if override is None or override.is_delete() or "@" in override.get_key_element():
        return word
    key, _, value = word.partition("=")
    if key.startswith("hydra"):
        return word
    texts = [part if is_text(part) else in_quotes(part) for part in parts(value)]
    if all(map(is_text, parts(value))) or not takes_text(config, override.key_or_group):
        return word
    return f"{key}={','.join(texts)}"


def is_text(value: str) -> bool:
    """Return whether Hydra reads a value as text, as null, or as several."""
    override = read(f"key={value}")
    if override is None or override.is_sweep_override():
        return True
    return override.value() is None or isinstance(override.value(), str)


def refuse_several(arguments: Sequence[str]) -> None:
    """Refuse several values of a key in a command without -m.

    Raises:
        ConfigError: names the first key.
    """
    given = get_args_parser().parse_args(list(arguments))
    for word in () if given.multirun else given.overrides:
        override = read(word)
        if override is not None and override.is_sweep_override():
            key, _, value = word.partition("=")
            ways = [f"{word} has several values: add -m for a run of each"]
            is_group = (conf_dir() / override.key_or_group).is_dir()
            if not is_group or key == "teacher":
                ways.append(f"write {key}=[{value}] for one run with all of them")
            if not is_group:
                ways.append(f"or \"{key}='{value}'\" for one text with a comma")
            raise ConfigError(", ".join(ways))
