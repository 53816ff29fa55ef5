"""Cells of another precision beside those of fp32, where paired seeds tell the two apart no more.

The guard: over three shared seeds or more, the paired difference is no real one, and no larger than
the spread between the seeds of fp32.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import NamedTuple

from kdbench.ledger.cell import Cell
from kdbench.ledger.cells import differing_keys
from kdbench.ledger.significance import LEVEL, Difference, paired
from kdbench.records.contents import Done
from kdbench.records.identity import without_later
from kdbench.records.protocol import PLAIN

SEEDS = 3
KEY = "precision"


class Twin(NamedTuple):
    """A cell of another precision, named by it, that has passed the guard."""

    cell: Cell
    of: str  # the row of fp32
    difference: Difference  # to the row of fp32, in points


def twins_of(cells: Iterable[Cell]) -> dict[str, list[Twin]]:
    """Return the cells that may stand beside one of fp32, by the hash of that one."""
    groups: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.records:
            groups[cell.data, cell.taught, cell.student, cell.method].append(cell)
    found: dict[str, list[Twin]] = defaultdict(list)
    for group in groups.values():
        for plain, other in permutations(group, 2):
            own = precision(other.records[0])
            if precision(plain.records[0]) != PLAIN[KEY] or not same_but_precision(plain, other):
                continue
            if (difference := passed(other, plain)) is not None:
                words = ", ".join(filter(None, [other.settings, own]))
                twin = Twin(replace(other, settings=words), plain.row, difference)
                found[str(plain.hash)].append(twin)
    return found


def precision(record: Done) -> str:
    """Return the precision of a run's forward passes."""
    return str(record.config.schedule.settings.get(KEY, PLAIN[KEY]))


def same_but_precision(one: Cell, other: Cell) -> bool:
    """Return whether the runs of two cells differ in their precision alone."""
    configs = [without_later(cell.records[0].config.spelt()) for cell in (one, other)]
    return differing_keys(configs) == [f"schedule.{KEY}"]


def passed(ours: Cell, plain: Cell) -> Difference | None:
    """Return the paired difference of two cells where it passes the guard."""
    found = paired(*(by_seed(cell) for cell in (ours, plain)))
    if found is None or found.n < SEEDS or found.p is None or found.p < LEVEL:
        return None
    spread = plain.score.std if plain.score is not None else None
    return found if spread is not None and abs(found.mean) <= spread else None


def by_seed(cell: Cell) -> Mapping[int, float]:
    """Return a cell's headlines by seed, in percent."""
    return {record.seed: record.headline for record in cell.records}


def beside(cell: Cell, twins: Sequence[Twin]) -> list[Cell]:
    """Return the cells of other precisions that stand beside a cell."""
    return [twin.cell for twin in twins if twin.of == cell.row]
