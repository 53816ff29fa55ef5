"""Tables of detectors' runs: COCO's average precisions instead of top-1."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from kdbench.ledger.cells import ALONE, Key, cost, key_of, machines, mixture
from kdbench.ledger.formats import cost_text, drawn, score_text
from kdbench.ledger.significance import Estimate, estimate
from kdbench.records.record import Record

COLUMNS = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
FIELDS = ("ap_last", "ap50_last", "ap75_last", "ap_small_last", "ap_medium_last", "ap_large_last")
NOTE = "AP in percent after the last step: mean ± sample standard deviation over (n) seeds."


def ap_tables(
    records: Iterable[Record], protocol: str | None = None
) -> tuple[list[str], list[str]]:
    """A table in Markdown for each pair and protocol, and a line for each cell left out.

    Args:
        records: of detectors.
        protocol: only the tables of this one.
    """
    cells: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        if protocol in (None, record["protocol"]):
            cells[key_of(record)].append(record)
    problems = {key: line for key, found in cells.items() if (line := mixture(found)) is not None}
    pairs: dict[Key, list[Key]] = defaultdict(list)
    for key in sorted(cells.keys() - problems.keys(), key=lambda key: key.place):
        pairs[key.pair].append(key)
    tables = [_table(pair, {key: cells[key] for key in keys}) for pair, keys in pairs.items()]
    return tables, list(problems.values())


def _table(pair: Key, cells: dict[Key, list[Record]]) -> str:
    names = pair.student if pair.teacher == ALONE else f"{pair.teacher} -> {pair.student}"
    rows = [[key.method, *_row(found)] for key, found in cells.items()]
    hardware = "; ".join(machines(record for found in cells.values() for record in found))
    title = f"{pair.dataset}, {names}, protocol {pair.protocol}"
    return drawn(title, ["method", *COLUMNS, "cost"], rows, [NOTE, f"hardware: {hardware}."])


def _row(records: Sequence[Record]) -> list[str]:
    done = [record for record in records if record["status"] == "done"]
    if not done:
        return ["failed", *[""] * len(COLUMNS)]
    return [*(score_text(_estimate(done, field)) for field in FIELDS), cost_text(cost(done))]


def _estimate(records: Iterable[Record], field: str) -> Estimate | None:
    values = [record[field] for record in records if record[field] is not None]
    return estimate(values) if values else None
