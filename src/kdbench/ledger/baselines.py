"""The baseline row of a table, and the gains of the other rows over it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from kdbench.config.recipes import Recipe
from kdbench.errors import ConfigError, nearest
from kdbench.ledger.cells import ALONE, BASELINE, Key
from kdbench.ledger.significance import Difference, holm, paired
from kdbench.records.contents import Done, Record

Groups = Mapping[Key, Sequence[Record]]


class Gain(NamedTuple):
    """A cell's difference to the baseline of its table."""

    difference: Difference
    p: float | None  # adjusted over the table
    over: str  # the baseline's row
    usual: bool  # the baseline is KD with conf's settings


def gains_of(
    groups: Groups, settings: Mapping[Key, str], recipes: Mapping[Key, Recipe], wanted: str | None
) -> tuple[dict[Key, Gain], list[str]]:
    """Return every cell's gain over its table's baseline, and a line for each table without one.

    Args:
        groups: the runs of each cell.
        settings: the text that distinguishes a cell from others of its method.
        recipes: the recipe of conf for each cell.
        wanted: the baseline's name: a method, a row or a cell; None: KD.

    Raises:
        ConfigError: no cell has that name.
    """
    names = {key: _names(key, groups[key], settings[key]) for key in groups}
    if wanted is not None and not any(wanted in found for found in names.values()):
        known = set().union(*names.values())
        raise ConfigError(f"no cell is called '{wanted}': {nearest(wanted, known)}")
    tables: dict[Key, list[Key]] = defaultdict(list)
    for key in groups:
        tables[key.pair].append(key)
    gains: dict[Key, Gain] = {}
    problems = []
    for pair, keys in sorted(tables.items()):
        beside = [*keys, *(tables.get(pair.alone, []) if pair != pair.alone else [])]
        fit = [key for key in beside if (wanted or BASELINE) in names[key] and _scores(groups[key])]
        plain = [key for key in fit if not recipes[key].departures]
        chosen = plain if len(plain) == 1 else fit
        if len(chosen) == 1:
            (base,) = chosen
            usual = base in plain and recipes[base].method == BASELINE
            own = {key: paired(_scores(groups[key]), _scores(groups[base])) for key in keys}
            gains |= _adjusted(own, base, _row(base, settings[base]), usual)
        elif len(chosen) > 1:
            rows = ", ".join(sorted(_row(key, settings[key]) for key in chosen))
            problems.append(
                f"{_title(pair)}: no gain is shown, its baseline could be {rows}: choose one with "
                f"--baseline {sorted(names[chosen[0]], key=len)[-1]}"
            )
    return gains, problems


def _adjusted(
    found: Mapping[Key, Difference | None], base: Key, over: str, usual: bool
) -> dict[Key, Gain]:
    gains = {
        key: gain
        for key, gain in found.items()
        if gain is not None and key != base and not (usual and key.method == "ce")
    }
    ps = holm([gain.p for gain in gains.values()])
    return {
        key: Gain(gain, p, over, usual) for (key, gain), p in zip(gains.items(), ps, strict=True)
    }


def _names(key: Key, records: Sequence[Record], settings: str) -> set[str]:
    """Return the names by which a cell may be called."""
    cell = records[0].cell
    return {key.method, _row(key, settings), cell, f"{cell}-{key.hash}"}


def _row(key: Key, settings: str) -> str:
    return f"{key.method} ({settings})" if settings else key.method


def _title(pair: Key) -> str:
    names = pair.student if pair.teacher == ALONE else f"{pair.teacher} -> {pair.student}"
    return f"{pair.dataset}, {names}, protocol {pair.protocol}"


def _scores(records: Iterable[Record]) -> dict[int, float]:
    """Return the headlines of the runs that are done, by seed."""
    return {r.seed: r.headline for r in records if isinstance(r, Done)}
