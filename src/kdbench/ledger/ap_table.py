"""Tables of detectors' runs, with COCO's average precisions instead of top-1."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from kdbench.config.recipes import Departure, recipe_of
from kdbench.ledger.cells import ALONE, Key, cost, key_of, machines, rows_of, teachers_of
from kdbench.ledger.formats import STAR, cost_text, drawn, score_text
from kdbench.ledger.significance import Estimate, estimate
from kdbench.records.contents import DetectorRecord, Record
from kdbench.system.escapes import as_markdown

COLUMNS = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
NOTE = "AP in percent after the last step: mean ± sample standard deviation over (n) seeds."


def ap_tables(records: Iterable[Record], protocol: str | None = None) -> list[str]:
    """Return a Markdown table for each pair and protocol, teacher and data.

    Args:
        records: detectors' records.
        protocol: show the tables of this one alone.
    """
    cells: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        if protocol in (None, record.protocol):
            cells[key_of(record)].append(record)
    settings = rows_of(cells)
    pairs: dict[Key, list[Key]] = defaultdict(list)
    for key in sorted(cells, key=lambda key: key.place):
        pairs[key.pair].append(key)
    return [
        _table(pair, {key: cells[key] for key in keys}, settings) for pair, keys in pairs.items()
    ]


def _table(pair: Key, cells: dict[Key, list[Record]], settings: dict[Key, str]) -> str:
    student, teacher = as_markdown(pair.student), as_markdown(pair.teacher)
    names = student if pair.teacher == ALONE else f"{teacher} -> {student}"
    records = [record for found in cells.values() for record in found]
    rows, notes = [], []
    for key, found in cells.items():
        departures = _departures(found[0])
        name = as_markdown(f"{key.method} ({settings[key]})" if settings[key] else key.method)
        rows.append([name + STAR * bool(departures), *_row(found)])
        if departures:
            notes.append(f"{name}{STAR}: {as_markdown('; '.join(map(str, departures)))}.")
    if taught := teachers_of(records):
        notes.append(f"teacher, measured here: {as_markdown('; '.join(taught))}.")
    notes.append(f"hardware: {as_markdown('; '.join(machines(records)))}.")
    title = f"{as_markdown(pair.dataset)}, {names}, protocol {as_markdown(pair.protocol)}"
    return drawn(title, ["method", *COLUMNS, "cost"], rows, [NOTE, *notes])


def _departures(record: Record) -> tuple[Departure, ...]:
    return recipe_of(record.config, record.hardware.ranks).departures


def _row(records: Sequence[Record]) -> list[str]:
    done = [record for record in records if isinstance(record, DetectorRecord)]
    if not done:
        return ["failed", *[""] * len(COLUMNS)]
    columns = zip(*map(_scores, done), strict=True)
    return [*(score_text(_estimate(column)) for column in columns), cost_text(cost(done))]


def _scores(record: DetectorRecord) -> tuple[float | None, ...]:
    by_overlap = record.ap_last, record.ap50_last, record.ap75_last
    return *by_overlap, record.ap_small_last, record.ap_medium_last, record.ap_large_last


def _estimate(scores: Iterable[float | None]) -> Estimate | None:
    values = [score for score in scores if score is not None]
    return estimate(values) if values else None
