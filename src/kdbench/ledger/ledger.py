"""The ledger: every cell of the tables, from records and published scores and from nothing else."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from kdbench.config.run_config import conf_dir
from kdbench.errors import KdbenchError
from kdbench.ledger.cells import (
    ALONE,
    BASELINE,
    BASELINES,
    Key,
    key_of,
    mixture,
    read_records,
    several_protocols,
    split_tasks,
)
from kdbench.ledger.published import Published, choose, claim, read_published
from kdbench.ledger.significance import (
    Difference,
    Estimate,
    Verdict,
    estimate,
    holm,
    paired,
    verdict_of_gain,
    verdict_of_score,
)
from kdbench.records.protocol import protocol_of
from kdbench.records.record import Record

# Epochs and batch size of published tables, whose cells are shown before anyone has run them:
# CIFAR's recipe, conf/schedule/cifar100.yaml.
COMMON = {"epochs": 240, "batch_size": 64}
NAME = re.compile(r"[\w.+-]{1,200}", re.ASCII)  # of a file of conf/


@dataclass(frozen=True)
class Cell:
    """One method on one pair: its runs over the seeds, and what is published."""

    dataset: str
    teacher: str  # ALONE, or names joined by "+"
    student: str
    method: str
    protocol: str
    hash: str | None  # None: not run
    records: tuple[Record, ...]  # done, by seed; () where not run
    failed: tuple[Record, ...]
    top1: Estimate | None  # percent, at the last epoch
    best_on_test: Estimate | None
    last5: Estimate | None
    gain: Difference | None  # points over KD of the same pair and protocol, same seeds
    gain_p: float | None  # Holm-adjusted within the pair's table
    published: Published | None
    claimed_gain: float | None
    verdict: Verdict
    reconstructed: bool  # the method's settings are marked reconstructed or INFERRED
    claim_source: str | None = None  # whose claim it is, a key of results/published.csv

    @property
    def comparable(self) -> Estimate | None:
        """Our score of the epoch that the published one is of: the last, or the best on test."""
        best = self.published is not None and self.published.protocol == "best"
        return self.best_on_test if best else self.top1

    @property
    def best_minus_last(self) -> float | None:
        """What the choice of the best epoch on the test set would add, in points."""
        if self.top1 is None or self.best_on_test is None:
            return None
        return self.best_on_test.mean - self.top1.mean

    @property
    def gap(self) -> float | None:
        """Ours minus published, in points, both at the last epoch or both at the best one."""
        if self.comparable is None or self.published is None or self.published.top1 is None:
            return None
        return self.comparable.mean - self.published.top1


@dataclass(frozen=True)
class Ledger:
    """All cells in the tables' order, and what was left out."""

    cells: tuple[Cell, ...]
    problems: tuple[str, ...]  # one line each; the rest is made
    detectors: tuple[Record, ...] = ()  # runs with tables of their own, `kdbench.ledger.ap_table`


class Table(NamedTuple):
    """One pair under one protocol, with the student trained alone as its first rows."""

    dataset: str
    teacher: str
    student: str
    protocol: str
    cells: tuple[Cell, ...]

    @property
    def pair(self) -> str:
        """Teacher and student, for people."""
        return self.student if self.teacher == ALONE else f"{self.teacher} -> {self.student}"

    @property
    def name(self) -> str:
        """Its file's name, without an ending."""
        pair = self.student if self.teacher == ALONE else f"{self.teacher}_{self.student}"
        # The protocol's own name begins with the data set's.
        protocol = self.protocol.removeprefix(f"{self.dataset}-")
        return re.sub(r"[^\w.+-]", "_", f"{self.dataset}-{pair}-{protocol}")

    @property
    def run(self) -> bool:
        """Whether anyone has run any of it."""
        return any(cell.records or cell.failed for cell in self.cells)


Gains = dict[Key, tuple[Difference, float | None]]  # with the adjusted p-value


def open_ledger(paths: Sequence[Path], published: Path | None) -> Ledger:
    """Read records at and below `paths`; what cannot be used is a line in `problems`.

    Args:
        paths: folders of runs or of records, or records.
        published: the file of published scores; None for tables without them.
    """
    found, problems = read_records(paths)
    runs, detectors = split_tasks(found)
    rows: list[Published] = []
    if published is not None:
        try:
            rows, bad = read_published(published)
            problems += bad
        except KdbenchError as error:
            problems.append(str(error))
    problems += several_protocols(runs)
    groups: dict[Key, list[Record]] = defaultdict(list)
    for record in runs:
        groups[key_of(record)].append(record)
    keys = {*groups, *_published_keys(rows, groups)}
    for key in sorted(groups, key=lambda key: key.place):
        line = mixture(groups[key])
        if line is not None:
            problems.append(line)
            keys.remove(key)
            del groups[key]
    gains = _gains(groups)
    cells = (_cell(key, groups.get(key, []), gains, rows) for key in keys)
    ordered = tuple(sorted(cells, key=lambda cell: _key(cell).place))
    return Ledger(ordered, tuple(problems), tuple(detectors))


def tables(ledger: Ledger) -> list[Table]:
    """The ledger's tables: a student's cells without a teacher head each of its pairs' tables."""
    pairs: dict[Key, list[Cell]] = defaultdict(list)
    for cell in ledger.cells:
        pairs[_key(cell).pair].append(cell)
    made = []
    for pair, cells in pairs.items():
        alone = pair._replace(teacher=ALONE)
        if pair != alone:
            cells = [*pairs.get(alone, ()), *cells]
        elif any(other._replace(teacher=ALONE) == alone for other in pairs if other != alone):
            continue
        made.append(Table(pair.dataset, pair.teacher, pair.student, pair.protocol, tuple(cells)))
    return made


def _key(cell: Cell) -> Key:
    return Key(cell.dataset, cell.teacher, cell.student, cell.method, cell.protocol)


def _published_keys(rows: Iterable[Published], groups: Mapping[Key, object]) -> set[Key]:
    """Cells of published tables that nobody may have run: of our methods, on our pairs."""
    pairs = {(key.teacher, key.student) for key in groups} | _pairs()
    pairs |= {(ALONE, student) for _, student in pairs}
    return {
        Key(row.dataset, row.teacher, row.student, row.method, _common_protocol(row.dataset))
        for row in rows
        if row.method and row.epochs == COMMON["epochs"] and (row.teacher, row.student) in pairs
    }


def _common_protocol(dataset: str) -> str:
    return protocol_of({"dataset": {"name": dataset}, "schedule": COMMON})


@cache
def _pairs() -> frozenset[tuple[str, str]]:
    """Teacher and student of every file of conf/pair."""
    texts = [path.read_text() for path in sorted((conf_dir() / "pair").glob("*.yaml"))]
    named = [dict(re.findall(r"override /(teacher|student): (\S+)", text)) for text in texts]
    return frozenset((names["teacher"], names["student"]) for names in named if names)


def _gains(groups: Mapping[Key, Sequence[Record]]) -> Gains:
    """Every cell's difference to KD of its pair and protocol, adjusted over the pair's methods."""
    families: dict[Key, dict[Key, Difference]] = defaultdict(dict)
    for key, records in groups.items():
        baseline = _by_seed(groups.get(key._replace(method=BASELINE), ()))
        gain = paired(_by_seed(records), baseline) if key.method not in BASELINES else None
        if gain is not None:
            families[key.pair][key] = gain
    return {
        key: (gain, p)
        for family in families.values()
        for (key, gain), p in zip(
            family.items(), holm([gain.p for gain in family.values()]), strict=True
        )
    }


def _by_seed(records: Iterable[Record]) -> dict[int, float]:
    return {r["seed"]: r["top1_last"] for r in records if r["status"] == "done"}


def _cell(
    key: Key, records: Sequence[Record], gains: Gains, published: Sequence[Published]
) -> Cell:
    done = tuple(record for record in records if record["status"] == "done")
    epochs = records[0]["config"]["schedule"]["epochs"] if records else COMMON["epochs"]
    place = (key.dataset, key.teacher, key.student, epochs)
    rows = [r for r in published if (r.dataset, r.teacher, r.student, r.epochs) == place]
    claimed = claim(rows, key.method) if key.method not in BASELINES else None
    gain, gain_p = gains.get(key, (None, None))
    cell = Cell(
        *key,
        hash=done[0]["hash"] if done else None,
        records=done,
        failed=tuple(record for record in records if record["status"] != "done"),
        top1=_estimate(done, "top1_last"),
        best_on_test=_estimate(done, "top1_best_on_test"),
        last5=_estimate(done, "top1_last5"),
        gain=gain,
        gain_p=gain_p,
        published=choose(rows, key.method),
        claimed_gain=None if claimed is None else claimed.gain,
        verdict=Verdict.NOT_RUN,
        reconstructed=_reconstructed(key.method, f"{key.teacher}_{key.student}"),
        claim_source=None if claimed is None else claimed.source,
    )
    return replace(cell, verdict=_verdict(cell)) if done else cell


def _estimate(records: Iterable[Record], name: str) -> Estimate | None:
    values = [record[name] for record in records]
    return estimate(values) if values else None


def _verdict(cell: Cell) -> Verdict:
    """What the runs of a cell say of its published number."""
    published = cell.published
    if cell.method in BASELINES:
        if published is None or published.top1 is None:
            return Verdict.NO_CLAIM
        ours = cell.comparable
        return verdict_of_score(ours, published.top1, published.top1_std, published.seeds)
    if cell.claimed_gain is None:
        return Verdict.NO_CLAIM
    return verdict_of_gain(cell.gain, cell.gain_p, cell.claimed_gain)


@cache
def _reconstructed(method: str, pair: str) -> bool:
    """Whether a method's settings, or those it has for this pair, are no source's."""
    if not (NAME.fullmatch(method) and NAME.fullmatch(pair)):
        return False
    names = [f"method/{method}.yaml", f"tuned/{method}/{pair}.yaml"]
    texts = [path.read_text() for path in (conf_dir() / name for name in names) if path.is_file()]
    return any("status: reconstructed" in text or "INFERRED" in text for text in texts)
