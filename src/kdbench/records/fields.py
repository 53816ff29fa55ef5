"""Parts of a record, read from JSON by their annotations and written back unchanged."""

import dataclasses
from collections.abc import Mapping
from types import NoneType
from typing import Any, NamedTuple, Self, get_args, get_origin, get_type_hints

from kdbench.errors import ConfigError
from kdbench.schema.check import convert
from kdbench.schema.node import Node

WRITTEN = {"written": True}  # of a field that is written where it has its default, null or not
FLAT = {"flat": True}  # of a part whose keys stand among those of the whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A JSON object of a record.

    A field without a default must be there. One with a default is left out where it has it, and is
    never null; `WRITTEN` says otherwise.
    """

    rest: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # other versions' keys

    @classmethod
    def read(cls, content: Mapping[str, Any], path: str = "") -> Self:
        """Read a part from its JSON object.

        Args:
            content: the object.
            path: its place in the record with a dot behind, for error lines.

        Raises:
            ConfigError: names the field that is missing, or of another type.
        """
        rest = dict(content)
        return cls(**_taken(cls, rest, path), rest=rest)

    def spelt(self) -> dict[str, Any]:
        """Return the JSON object."""
        found: dict[str, Any] = {}
        for one in _fields(type(self)):
            value = getattr(self, one.name)
            if one.flat:
                found |= {} if value is None else value.spelt()
            elif one.written or value != one.default:
                found[one.name] = _spelt(value)
        return found | dict(self.rest)


class _Field(NamedTuple):
    name: str
    hint: Any  # without null where the field's default is null
    default: Any  # MISSING: it must be there
    written: bool
    flat: bool


_KNOWN: dict[type[Part], tuple[_Field, ...]] = {}


def _fields(cls: type[Part]) -> tuple[_Field, ...]:
    if cls in _KNOWN:
        return _KNOWN[cls]
    hints = get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        if field.name == "rest":
            continue
        hint, written = hints[field.name], "written" in field.metadata
        if field.default is None and not written:
            (hint,) = (one for one in get_args(hint) if one is not NoneType)
        found.append(_Field(field.name, hint, field.default, written, "flat" in field.metadata))
    return _KNOWN.setdefault(cls, tuple(found))


def _taken(cls: type[Part], rest: dict[str, Any], path: str) -> dict[str, Any]:
    """The values of a part's fields, which are taken out of `rest`."""
    found = {}
    for one in _fields(cls):
        key = f"{path}{one.name}"
        if one.flat:
            if one.default is dataclasses.MISSING or _has_all(one.hint, rest):
                found[one.name] = one.hint(**_taken(one.hint, rest, path))
        elif _is_part(one.hint) and one.default is dataclasses.MISSING:
            found[one.name] = one.hint.read(_mapping(rest.pop(one.name, None)), f"{key}.")
        elif one.name in rest:
            found[one.name] = _read(key, rest.pop(one.name), one.hint)
        elif one.hint is Node and one.default is dataclasses.MISSING:
            raise ConfigError(f"{key}.name is missing")
        elif one.default is dataclasses.MISSING:
            raise ConfigError(f"{key} is missing")
    return found


def _has_all(cls: type[Part], content: Mapping[str, Any]) -> bool:
    return all(one.name in content for one in _fields(cls) if one.default is dataclasses.MISSING)


def _is_part(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Part)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _read(path: str, value: Any, hint: Any) -> Any:
    """A value of JSON as the field's type; numbers stay as they were written."""
    if hint is Node:
        node = _mapping(value)
        if "name" not in node:
            raise ConfigError(f"{path}.name is missing")
        convert(f"{path}.name", node["name"], str)
        return Node.read(node)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple:
        convert(path, value, list[dict[str, Any]])
        return tuple(_read_one(one, f"{path}[{i}].", arguments[0]) for i, one in enumerate(value))
    if origin is dict and _is_part(arguments[1]):
        convert(path, value, dict[str, object])
        return {key: arguments[1].read(_mapping(one), f"{key}.") for key, one in value.items()}
    convert(path, value, hint)
    return value


def _read_one(content: Mapping[str, Any], path: str, hint: Any) -> Any:
    """A part of the first kind that has all that it must have, or of the last."""
    *first, last = get_args(hint)
    return next((kind for kind in first if _has_all(kind, content)), last).read(content, path)


def _spelt(value: Any) -> Any:
    if isinstance(value, Part | Node):
        return value.spelt()
    if isinstance(value, tuple):
        return [_spelt(one) for one in value]
    if isinstance(value, dict):
        return {key: _spelt(one) for key, one in value.items()}
    return value
