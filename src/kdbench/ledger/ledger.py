"""The ledger: every cell of the tables, from records and published scores alone."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from kdbench.config.recipes import Recipe, recipe_of, reconstructed
from kdbench.errors import KdbenchError
from kdbench.ledger.baselines import gains_of
from kdbench.ledger.cell import Cell, cell_of, judged
from kdbench.ledger.cells import (
    ALONE,
    BASELINE,
    Key,
    key_of,
    left_out,
    read_records,
    rows_of,
)
from kdbench.ledger.claims import COMMON, published_keys, swept_keys
from kdbench.ledger.precisions import Twin, beside, by_seed, twins_of
from kdbench.ledger.published import Published, read_published, trained_alone
from kdbench.ledger.significance import paired
from kdbench.ledger.table_names import digest, file_name, mark
from kdbench.ledger.verified import read_verified
from kdbench.records.contents import Record


@dataclass(frozen=True)
class Ledger:
    """All cells in the tables' order, and the runs that were left out."""

    cells: tuple[Cell, ...]
    problems: tuple[str, ...]  # one line each
    controls: tuple[Cell, ...] = ()  # runs that explain another cell's score and rank nothing
    # The published scores of networks trained alone, by data set and network.
    schools: Mapping[tuple[str, str], Published] = field(default_factory=dict)


class Table(NamedTuple):
    """One pair under one protocol, with the student trained alone as its first rows."""

    dataset: str
    teacher: str
    student: str
    protocol: str
    cells: tuple[Cell, ...]
    name: str  # the unique name of its file, without ending
    mark: str  # distinguishes it from others of the same pair and protocol; else ""
    controls: tuple[Cell, ...] = ()
    schools: tuple[Published, ...] = ()  # of its teachers, trained alone
    twins: tuple[Twin, ...] = ()  # of its cells, in another precision

    @property
    def pair(self) -> str:
        """Teacher and student, for display."""
        return self.student if self.teacher == ALONE else f"{self.teacher} -> {self.student}"

    @property
    def rows(self) -> list[Cell]:
        """Its cells, each with its twins and its controls behind it."""
        found: list[Cell] = []
        for cell in self.cells:
            controls = [one for one in self.controls if one.recipe == cell.row]
            found += [cell, *beside(cell, self.twins), *controls]
        return found

    @property
    def run(self) -> bool:
        """Whether any of its cells has runs."""
        return any(cell.records or cell.failed for cell in self.cells)

    @property
    def baseline(self) -> str:
        """The row over which its gains are computed."""
        return next((cell.baseline for cell in self.cells if cell.baseline), BASELINE)


def open_ledger(
    paths: Sequence[Path],
    published: Path | None,
    baseline: str | None = None,
    swept: bool = False,
    verified: Path | None = None,
    controls: Path | None = None,
) -> Ledger:
    """Read records at and below `paths`; each unusable one is a line in `problems`.

    Args:
        paths: folders of runs or of records, or records.
        published: the file of published scores; None for tables without them.
        baseline: the row or cell over which gains are computed; None: KD.
        swept: show cells that a pair's own sweep has yet to fill.
        verified: the folder of verifications of records that others have sent.
        controls: the folder of records that stand beside the cells whose scores they explain.

    Raises:
        ConfigError: no cell has the name `baseline`.
    """
    found, problems = read_records(paths)
    sent, told = read_verified(verified, found) if verified is not None else ({}, [])
    problems += told
    rows: list[Published] = []
    if published is not None:
        try:
            rows, bad = read_published(published)
            problems += bad
        except KdbenchError as error:
            problems.append(str(error))
    problems += left_out(found)
    groups: dict[Key, list[Record]] = defaultdict(list)
    for record in found:
        groups[key_of(record)].append(record)
    recipes = {key: _recipe(records) for key, records in groups.items()}
    settings = rows_of(groups)
    gains, told = gains_of(groups, settings, recipes, baseline)
    problems += told
    keys = {*groups, *published_keys(rows, groups)}
    if swept and rows:
        keys |= swept_keys(keys, groups)
    cells = []
    for key in sorted(keys, key=lambda key: key.place):
        recipe = recipes.get(key) or Recipe(key.method, (), _inferred(key))
        cell = cell_of(key, groups.get(key, []), recipe, settings.get(key, ""), rows)
        of_others = tuple(sent[one.run_id] for one in cell.records if one.run_id in sent)
        cell = replace(cell, verified=of_others)
        cells.append(judged(cell, gains.get(key), baseline))
    beside = (
        () if controls is None or not controls.is_dir() else open_ledger([controls], None).cells
    )
    schools = trained_alone(rows, COMMON["epochs"])
    return Ledger(tuple(cells), tuple(problems), beside, schools)


def _recipe(records: Sequence[Record]) -> Recipe:
    return recipe_of(records[0].config, records[0].hardware.ranks)


def _inferred(key: Key) -> bool:
    """Return whether a cell without runs would have settings from no source."""
    return reconstructed(key.method, f"{key.teacher}_{key.student}")


def tables(ledger: Ledger) -> list[Table]:
    """Return the ledger's tables; a student's cells without teacher head all its pairs' tables."""
    pairs: dict[Key, list[Cell]] = defaultdict(list)
    for cell in ledger.cells:
        pairs[_key(cell).pair].append(cell)
    shown: dict[Key, list[Cell]] = {}
    for pair, cells in pairs.items():
        if pair != pair.alone:
            shown[pair] = [*pairs.get(pair.alone, ()), *cells]
        elif not any(other.alone == pair for other in pairs if other != pair):
            shown[pair] = cells
    titles: dict[Key, list[Key]] = defaultdict(list)
    files: dict[str, list[Key]] = defaultdict(list)
    for pair in shown:
        titles[pair._replace(data="", taught="")].append(pair)
        files[file_name(pair).casefold()].append(pair)
    made, all_twins = [], twins_of(ledger.cells)
    for pair, cells in shown.items():
        several = len(files[file_name(pair).casefold()]) > 1
        name = f"{file_name(pair)}-{digest(pair)}" if several else file_name(pair)
        marked = mark(pair, titles[pair._replace(data="", taught="")])
        place = pair.dataset, pair.teacher, pair.student, pair.protocol
        names = pair.teacher.split("+")
        alone = [
            ledger.schools[key] for one in names if (key := (pair.dataset, one)) in ledger.schools
        ]
        controls = _controls(pair, cells, ledger.controls)
        twins = [twin for cell in cells for twin in all_twins.get(cell.hash or "", ())]
        more = controls, tuple(alone), tuple(twins)
        made.append(Table(*place, tuple(cells), name, marked, *more))
    return made


def _controls(pair: Key, cells: Sequence[Cell], controls: Sequence[Cell]) -> tuple[Cell, ...]:
    """Return the controls of a pair's cells, with their difference to its baseline, untested."""
    over = next((cell.baseline for cell in cells if cell.baseline), BASELINE)
    base = next((cell for cell in cells if cell.row == over and cell.records), None)
    theirs = {} if base is None else by_seed(base)
    return tuple(
        replace(cell, baseline=over, gain=paired(by_seed(cell), theirs))
        for cell in controls
        if _key(cell).pair == pair
    )


def _key(cell: Cell) -> Key:
    names = cell.dataset, cell.teacher, cell.student, cell.method, cell.protocol
    return Key(*names, cell.data, cell.taught)
