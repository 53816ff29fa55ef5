"""The ledger: every cell of the tables, from records and published scores alone."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from kdbench.config.recipes import Departure, Recipe, recipe_of, reconstructed
from kdbench.errors import KdbenchError
from kdbench.ledger.baselines import Gain, gains_of
from kdbench.ledger.cells import (
    ALONE,
    BASELINE,
    BASELINES,
    Key,
    key_of,
    left_out,
    read_records,
    rows_of,
)
from kdbench.ledger.claims import common, published_keys, swept_keys
from kdbench.ledger.published import Published, choose, claim, read_published
from kdbench.ledger.significance import (
    Difference,
    Estimate,
    Verdict,
    estimate,
    verdict_of_gain,
    verdict_of_score,
)
from kdbench.ledger.verified import Verification, read_verified
from kdbench.records.contents import Done, FailedRecord, Record, Task, task_of
from kdbench.records.identity import canonical


@dataclass(frozen=True)
class Cell:
    """One method on one pair: its runs over the seeds, and its published score."""

    dataset: str
    teacher: str  # ALONE, or names joined by "+"
    student: str
    method: str
    protocol: str
    data: str  # the data set's fingerprint, "" without runs
    taught: str  # sha256 of the teachers' weights
    settings: str  # distinguishes its row from others of the method; "" where there is no other
    recipe: str | None  # the file of conf/method that it follows; None: no file has its `_target_`
    departures: tuple[Departure, ...]  # settings that differ from conf's
    hash: str | None  # None without runs
    records: tuple[Done, ...]  # done, by seed; () where not run
    failed: tuple[FailedRecord, ...]
    task: Task
    score: Estimate | None  # the headline in percent, at the last epoch or step
    best_on_test: Estimate | None
    last5: Estimate | None
    baseline: str | None  # the row that the gain is over
    gain: Difference | None  # points over the baseline of the same table, same seeds
    gain_p: float | None  # Holm-adjusted within the pair's table
    published: Published | None
    claimed_gain: float | None
    verdict: Verdict
    reconstructed: bool  # the method's settings are marked reconstructed or INFERRED
    claim_source: str | None = None  # the claim's source, a key of results/published.csv
    verified: tuple[Verification, ...] = ()  # of the records that others have sent

    @property
    def row(self) -> str:
        """The name of its row."""
        return f"{self.method} ({self.settings})" if self.settings else self.method

    @property
    def comparable(self) -> Estimate | None:
        """Our score at the epoch of the published one: the last, or the best on test."""
        best = self.published is not None and self.published.protocol == "best"
        return self.best_on_test if best else self.score

    @property
    def best_minus_last(self) -> float | None:
        """The gain from choosing the best epoch on the test set, in points."""
        if self.score is None or self.best_on_test is None:
            return None
        return self.best_on_test.mean - self.score.mean

    @property
    def gap(self) -> float | None:
        """Ours minus published, in points, both at the last epoch or both at the best one."""
        if self.comparable is None or self.published is None or self.published.score is None:
            return None
        return self.comparable.mean - self.published.score


@dataclass(frozen=True)
class Ledger:
    """All cells in the tables' order, and the runs that were left out."""

    cells: tuple[Cell, ...]
    problems: tuple[str, ...]  # one line each


class Table(NamedTuple):
    """One pair under one protocol, with the student trained alone as its first rows."""

    dataset: str
    teacher: str
    student: str
    protocol: str
    cells: tuple[Cell, ...]
    name: str  # the unique name of its file, without ending
    mark: str  # distinguishes it from others of the same pair and protocol; else ""

    @property
    def pair(self) -> str:
        """Teacher and student, for display."""
        return self.student if self.teacher == ALONE else f"{self.teacher} -> {self.student}"

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
) -> Ledger:
    """Read records at and below `paths`; each unusable one is a line in `problems`.

    Args:
        paths: folders of runs or of records, or records.
        published: the file of published scores; None for tables without them.
        baseline: the row or cell over which gains are computed; None: KD.
        swept: show cells that a pair's own sweep has yet to fill.
        verified: the folder of verifications of records that others have sent.

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
        cell = _cell(key, groups.get(key, []), recipe, settings.get(key, ""), rows)
        of_others = tuple(sent[one.run_id] for one in cell.records if one.run_id in sent)
        cell = replace(cell, verified=of_others)
        cells.append(_judged(cell, gains.get(key), baseline))
    return Ledger(tuple(cells), tuple(problems))


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
        files[_file(pair).casefold()].append(pair)
    made = []
    for pair, cells in shown.items():
        several = len(files[_file(pair).casefold()]) > 1
        name = f"{_file(pair)}-{_digest(pair)}" if several else _file(pair)
        mark = _mark(pair, titles[pair._replace(data="", taught="")])
        place = pair.dataset, pair.teacher, pair.student, pair.protocol
        made.append(Table(*place, tuple(cells), name, mark))
    return made


def _file(pair: Key) -> str:
    """Return the name of a table's file, which need not be unique."""
    names = pair.student if pair.teacher == ALONE else f"{pair.teacher}_{pair.student}"
    # The protocol's own name begins with the data set's.
    protocol = pair.protocol.removeprefix(f"{pair.dataset}-")
    return re.sub(r"[^\w.+-]", "_", f"{pair.dataset}-{names}-{protocol}")


def _digest(pair: Key) -> str:
    return hashlib.sha256(canonical(list(pair)).encode()).hexdigest()[:8]


def _mark(pair: Key, alike: Sequence[Key]) -> str:
    words = []
    if len({key.data for key in alike}) > 1:
        words.append(f"data {pair.data[:8]}")
    if len({key.taught for key in alike}) > 1:
        words.append(f"teacher {'+'.join(one[:8] for one in pair.taught.split('+'))}")
    return ", ".join(words)


def _key(cell: Cell) -> Key:
    names = cell.dataset, cell.teacher, cell.student, cell.method, cell.protocol
    return Key(*names, cell.data, cell.taught)


def _cell(
    key: Key, records: Sequence[Record], recipe: Recipe, settings: str, rows: Sequence[Published]
) -> Cell:
    """Make a cell without its gain and its verdict."""
    done = tuple(record for record in records if isinstance(record, Done))
    schedule = records[0].config.schedule.settings if records else common(key.dataset)
    place = (key.dataset, key.teacher, key.student, schedule.get("epochs"))
    rows = [r for r in rows if (r.dataset, r.teacher, r.student, r.epochs) == place]
    if recipe.departures or recipe.method != key.method:
        rows = []  # no source has such settings
    claimed = claim(rows, key.method) if key.method not in BASELINES else None
    return Cell(
        *key[:7],
        settings=settings,
        recipe=recipe.method,
        departures=recipe.departures,
        hash=done[0].hash if done else None,
        records=done,
        failed=tuple(record for record in records if isinstance(record, FailedRecord)),
        task=task_of(schedule),
        score=_estimate([record.headline for record in done]),
        best_on_test=_estimate([record.best_on_test for record in done]),
        last5=_estimate([one for record in done if (one := record.last5) is not None]),
        baseline=None,
        gain=None,
        gain_p=None,
        published=choose(rows, key.method),
        claimed_gain=None if claimed is None else claimed.gain,
        verdict=Verdict.NOT_RUN,
        reconstructed=recipe.reconstructed,
        claim_source=None if claimed is None else claimed.source,
    )


def _estimate(values: Sequence[float]) -> Estimate | None:
    return estimate(values) if values else None


def _judged(cell: Cell, gain: Gain | None, baseline: str | None) -> Cell:
    """Add gain and verdict to a cell; claims are over KD with published settings alone."""
    if gain is not None:
        cell = replace(cell, baseline=gain.over, gain=gain.difference, gain_p=gain.p)
    if baseline is not None or (gain is not None and not gain.usual):
        cell = replace(cell, claimed_gain=None, claim_source=None)
    return replace(cell, verdict=_verdict(cell)) if cell.records else cell


def _verdict(cell: Cell) -> Verdict:
    """Judge a cell's published number by its runs."""
    published = cell.published
    if cell.method in BASELINES:
        if published is None or published.score is None:
            return Verdict.NO_CLAIM
        ours = cell.comparable
        return verdict_of_score(ours, published.score, published.std, published.seeds)
    if cell.claimed_gain is None:
        return Verdict.NO_CLAIM
    return verdict_of_gain(cell.gain, cell.gain_p, cell.claimed_gain)
