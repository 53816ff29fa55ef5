"""What a measure hands out: numbers for a file, tables and drawings for people."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from kdbench.ledger.svg import Palette


class Table(NamedTuple):
    """Rows for people; what they mean stands in the caption."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


class Drawing(NamedTuple):
    """A figure that is drawn once for the page and once for a file."""

    name: str  # of its files
    title: str
    note: str  # what is drawn how
    draw: Callable[[Palette], Figure]


class Result(NamedTuple):
    """What a measure found."""

    numbers: dict[str, Any]  # JSON
    tables: list[Table]
    drawings: list[Drawing]
    records: Mapping[str, Mapping[str, Any]] = MappingProxyType({})  # by folder and name: files


def plain(value: Any) -> Any:
    """Return a value as JSON has it: named tuples as objects, other tuples and arrays as lists."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: plain(item) for key, item in value._asdict().items()}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return None if value != value else round(value, 8)
    return value


def fixed(value: float | None, digits: int = 2) -> str:
    """Return a number for a table; nothing where there is none."""
    return "" if value is None or value != value else f"{value:.{digits}f}"
