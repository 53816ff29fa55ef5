"""Checks a composed configuration against the signatures of what it builds.

Hydra lets `+unknown=1`, `++method.temprature=3` and `seed=abc` through. Every node with a
`_target_` is therefore held against the annotated keywords of its target: unknown, missing and
ill-typed keys are one-line errors that name the nearest valid key. What comes back is complete
(defaults filled in) and normalised (`1` for a float becomes `1.0`), so that equal settings hash
equally however they were written.
"""

import inspect
import math
import types
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from kdbench.errors import ConfigError, first_line, nearest
from kdbench.schema.node import Node
from kdbench.schema.plugins import packages

# Words that Hydra's `instantiate` obeys wherever they stand: plain data may not hold them.
RESERVED = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def allowed() -> tuple[str, ...]:
    """Return the packages whose code a configuration may name."""
    return ("kdbench", *packages())


def is_allowed(name: str) -> bool:
    """Return whether a dotted name belongs to one of them."""
    top, dot, _ = name.partition(".")
    return bool(dot) and top in allowed()


def locate(
    path: str, target: object, kind: type = object, listed: Collection[str] | None = None
) -> Callable[..., Any]:
    """Return the callable that `_target_` names, which must make a `kind`.

    Of kdbench it is one that is listed or, where there is no list, a class; of one of `packages` it
    is that package's own class, or function annotated to return a `kind`.

    Args:
        path: the node's place in the configuration, for error lines.
        target: what the node names.
        kind: what it must make; object: that is not asked.
        listed: the names in kdbench that may be named.

    Raises:
        ConfigError: the target may not be named, does not exist or makes something else.
    """
    where = f"{path}._target_"
    shown = target if isinstance(target, str) and target.isprintable() else repr(target)
    outside = f"{where}={shown} is not allowed: name something in {', '.join(allowed())}"
    if not isinstance(target, str) or not is_allowed(target):
        raise ConfigError(outside)
    ours = target.startswith("kdbench.")
    try:
        found = resolve(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}={shown} does not exist: {first_line(error)}") from None
    except Exception as error:  # of a module of others, while it is imported
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{where}={shown} cannot be imported: {said}") from error
    home = f"{getattr(found, '__module__', None)}.".partition(".")[0]
    if not callable(found) or home != target.partition(".")[0]:
        raise ConfigError(outside)
    if kind is object:
        return cast(Callable[..., Any], found)
    if ours and not (inspect.isclass(found) if listed is None else target in listed):
        raise ConfigError(
            f"{where}={shown} is not allowed: name a {kind.__name__} of kdbench's own files"
        )
    if not _makes(found, kind):
        raise ConfigError(
            f"{where}={shown} is not allowed: name a {kind.__name__}, or a function annotated "
            "to return one"
        )
    return cast(Callable[..., Any], found)


def _makes(found: Callable[..., Any], kind: type) -> bool:
    """Return whether a class is a `kind`, or a function is annotated to return one."""
    made: object = found
    if not inspect.isclass(found):
        try:
            made = get_type_hints(found).get("return")
        except (NameError, TypeError, AttributeError):  # names that only a type checker imports
            return False
    return inspect.isclass(made) and issubclass(made, kind)


def resolve(target: str) -> object:
    """Return what a dotted name names, by its own package's modules alone; None if others'.

    A name that leads into a module which one of them has imported, as `kdbench.losses.torch.jit`,
    is not followed: that would import what it names.

    Raises:
        ImportError, AttributeError, ValueError: it names nothing.
    """
    package, *rest = target.split(".")
    if not all(part.isidentifier() for part in rest):
        return None
    found: object = import_module(package)
    for part in rest:
        if not isinstance(found, types.ModuleType):
            found = getattr(found, part)
            continue
        inner = f"{found.__name__}.{part}"
        found = getattr(found, part) if hasattr(found, part) else import_module(inner)
        if isinstance(found, types.ModuleType) and found.__name__ != inner:
            return None
    return found


def check_node(
    path: str,
    node: object,
    given: Collection[str] = (),
    kind: type = object,
    listed: Collection[str] | None = None,
) -> Node:
    """Check a node with a `_target_` against its target's signature; return it completed.

    Args:
        path: the node's place in the configuration, for error lines.
        node: the node as a plain container.
        given: keywords that the program fills in itself and a user may not set.
        kind: what the target must make; object: what it makes is not asked, nor made.
        listed: as `locate`'s.

    Raises:
        ConfigError: a key is unknown, missing or ill-typed.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{path} must be a mapping with a _target_, not {node!r}")
    target = locate(path, node["_target_"], kind, listed)
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    hints = hints_of(path, node)
    name = convert(f"{path}.name", node["name"], str) if "name" in node else ""
    settings = Node.read(node).settings
    valid = [key for key in parameters if key not in given]
    refuse_unknown(path, settings, valid)
    checked = {}
    for key in valid:
        if key not in hints:
            raise ConfigError(f"{node['_target_']} must annotate {key}: its type is the schema")
        default = parameters[key].default
        if key not in settings and default is inspect.Parameter.empty:
            raise ConfigError(f"{path}.{key} is missing: set it")
        checked[key] = convert(f"{path}.{key}", settings.get(key, default), hints[key])
    return Node(node["_target_"], checked, name)


def hints_of(path: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the annotation of each keyword that the node's target takes.

    Raises:
        ConfigError: as `locate`.
    """
    target = locate(path, node["_target_"])
    return get_type_hints(target.__init__ if inspect.isclass(target) else target)


def refuse_unknown(path: str, node: Mapping[Any, Any], valid: list[str]) -> None:
    """Refuse keys that are not in `valid`.

    Raises:
        ConfigError: with the nearest valid key.
    """
    for key in node:
        if key not in valid:
            where = f"{path}.{key}" if path else str(key)
            raise ConfigError(f"unknown key '{where}': {nearest(str(key), valid)}")


def convert(path: str, value: object, hint: Any) -> Any:
    """Convert `value` to the annotated type; integers become floats where a float is expected.

    Raises:
        ConfigError: it is of another type.
    """
    if type(value) is hint and hint in _WORDS:  # as most values are
        return value
    if hint is object:  # what a later look at it will tell
        return value
    if hint is Any:
        refuse_words(path, value)
        return value
    if inspect.isclass(hint) and _is_node_type(hint) and isinstance(value, Mapping):
        return check_node(path, value, kind=hint).spelt()
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(path, value, arguments)
    if origin is Literal:
        if value in arguments:
            return value
        choices = [str(argument) for argument in arguments]
        raise ConfigError(f"{path}={value!r} is not valid: {nearest(str(value), choices)}")
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return [convert(f"{path}[{i}]", item, arguments[0]) for i, item in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        _refuse_words(path, value)
        return {
            convert(path, key, arguments[0]): convert(f"{path}.{key}", item, arguments[1])
            for key, item in value.items()
        }
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{path} is too large for a number") from None
    if inspect.isclass(hint) and type(value) is hint:
        refuse_words(path, value)
        return value
    raise ConfigError(f"{path} must be {_describe(hint)}, not {value!r}")


def refuse_words(path: str, value: object) -> None:
    """Refuse words by which objects would be made, at any depth of plain data.

    Raises:
        ConfigError: names the word.
    """
    if isinstance(value, Mapping):
        _refuse_words(path, value)
        for key, item in value.items():
            refuse_words(f"{path}.{key}", item)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            refuse_words(f"{path}[{i}]", item)


def check_plain(path: str, node: object) -> None:
    """Refuse what a record could not hold: text that steers a terminal, and no numbers.

    Raises:
        ConfigError: names the key.
    """
    if isinstance(node, Mapping):
        for key, value in node.items():
            check_plain(path or "a name", key)
            check_plain(f"{path}.{key}".lstrip("."), value)
    elif isinstance(node, list | tuple):
        for item in node:
            check_plain(path, item)
    elif isinstance(node, str) and not node.isprintable():
        raise ConfigError(f"{path} holds characters that cannot be printed")
    elif isinstance(node, float) and not math.isfinite(node):
        raise ConfigError(f"{path} must be a finite number, not {node}")


def _refuse_words(path: str, node: Mapping[Any, Any]) -> None:
    for word in RESERVED:
        if word in node:
            raise ConfigError(f"{path}.{word} is not allowed: {path} is plain data")


def _is_node_type(hint: type) -> bool:
    """A class of ours stands for a nested node with its own `_target_`, as in a wrapper."""
    return is_allowed(f"{hint.__module__}.")


def _convert_union(path: str, value: object, arguments: tuple[Any, ...]) -> Any:
    choices = [argument for argument in arguments if argument is not type(None)]
    if value is None and len(choices) < len(arguments):
        return None
    if len(choices) == 1:
        return convert(path, value, choices[0])
    for choice in choices:
        try:
            return convert(path, value, choice)
        except ConfigError:
            continue
    words = " or ".join(_describe(argument) for argument in arguments)
    raise ConfigError(f"{path} must be {words}, not {value!r}")


def _describe(hint: Any) -> str:
    if hint is type(None):
        return "null"
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in get_args(hint))
    if get_origin(hint) in (list, tuple):
        return f"a list, each item {_describe(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return "a mapping"
    return _WORDS.get(hint, "a mapping with a _target_" if inspect.isclass(hint) else str(hint))
