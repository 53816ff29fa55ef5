"""A command's words, read before Hydra reads them: its grammar takes few signs unquoted."""

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
FIRST_SEED = 1000  # of the run that conf/teacher/NAME.yaml names; further ones count on


def arranged(arguments: Sequence[str]) -> list[str]:
    """A command's words as Hydra can read them: flags first, and quoted what it takes in quotes.

    Hydra lets no override stand behind a flag that stands between others.

    Raises:
        ConfigError: a word is neither a flag nor a setting.
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
    """An override as Hydra reads it; None where it cannot."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def quoted(override: str) -> str:
    """An override with quotes around each value that Hydra cannot read without.

    Raises:
        ConfigError: it is no KEY=VALUE.
    """
    if read(override) is not None:
        return override
    key, equals, value = override.partition("=")
    if not equals or read(f"{key}=x") is None:
        raise ConfigError(f"'{override}' is no setting: write KEY=VALUE, such as method=kd seed=0")
    return f"{key}={','.join(readable(part) for part in parts(value))}"


def readable(value: str) -> str:
    """One value, in quotes where Hydra cannot read it without; of a list, its items."""
    if read(f"key={value}") is not None:
        return value
    if value[0] == "[" and value[-1] == "]":
        return f"[{','.join(readable(part) for part in parts(value[1:-1]))}]"
    return in_quotes(value)


def in_quotes(value: str) -> str:
    """Text as Hydra writes it."""
    return QuotedString(value, Quote.single).with_quotes()


def parts(value: str) -> list[str]:
    """A value cut at its commas, but those inside quotes and brackets; whole where one is open."""
    found, closing = [""], ""  # `closing` ends what is open, the innermost last
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
    """An override of `teacher` that names one several times, as overrides that tell them apart.

    The second resnet20 is called resnet20_2, and is by itself the run of the next seed.

    Raises:
        ConfigError: one that is named twice is of no network of its name.
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
    """The words with quotes around what Hydra would take for a number, and a key takes as text.

    Args:
        arguments: as `arranged` gives them.
        config: what they compose, as plain containers.
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
