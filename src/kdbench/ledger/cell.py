"""One cell of a table: its runs, its published score, and its verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdbench.config.recipes import Departure, Recipe
from kdbench.ledger.baselines import Gain
from kdbench.ledger.cells import BASELINES, Key
from kdbench.ledger.claims import common
from kdbench.ledger.published import Published, choose, claim
from kdbench.ledger.significance import (
    LEVEL,
    Difference,
    Estimate,
    Verdict,
    estimate,
    verdict_of_gain,
    verdict_of_score,
)
from kdbench.ledger.verified import Verification
from kdbench.records.contents import Done, FailedRecord, Record
from kdbench.records.task_kinds import Task, task_of


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
    def tie(self) -> bool | None:
        """Whether its gain is not told from noise; None where seeds are too few to tell."""
        return None if self.gain_p is None else self.gain_p >= LEVEL

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


def cell_of(
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


def judged(cell: Cell, gain: Gain | None, baseline: str | None) -> Cell:
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
