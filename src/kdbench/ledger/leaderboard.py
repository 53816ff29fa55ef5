"""The leaderboards of the results page: each pair's table as HTML."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from kdbench.ledger.cell import Cell
from kdbench.ledger.cells import cost, machines
from kdbench.ledger.formats import DAGGER, STAR
from kdbench.ledger.formats import signed as plain
from kdbench.ledger.ledger import Table
from kdbench.ledger.precisions import beside, precision
from kdbench.ledger.prices import count
from kdbench.ledger.significance import Difference, Estimate, Verdict
from kdbench.system.escapes import as_html as _e

NOTHING = ""
MARKS = {
    Verdict.REPRODUCED: "✓",
    Verdict.NOT_REPRODUCED: "✗",
    Verdict.TIE: "≈",
    Verdict.NOT_RUN: "○",
    Verdict.TOO_FEW: "…",
    Verdict.NO_CLAIM: "–",
}
EPOCHS = {"best": ("best", "of its best epoch"), "unknown": ("?", "epoch unknown")}


class Row(NamedTuple):
    """A cell in its table."""

    cell: Cell
    rank: int | None  # from 1 by top-1 as printed; None with fewer than two seeds
    controls: str | None = None  # the row whose score it explains


class Column(NamedTuple):
    """A column: its key in links, its head, its cells' text, and its sort order."""

    key: str
    head: str
    text: Callable[[Row], str]  # HTML; sorting reads the number at its beginning
    order: str  # of the first click: "desc" or "asc"
    kind: str = "number"


def ranked(table: Table) -> list[Row]:
    """Rank cells best first, controls behind what they control; then the failed ones.

    Those without runs follow by published score.
    """
    run = [cell for cell in table.cells if cell.score is not None]
    scores = [_score(cell) for cell in run if _several(cell)]
    rows = [
        Row(cell, 1 + sum(s > _score(cell) for s in scores) if _several(cell) else None)
        for cell in run
    ]
    rows.sort(key=lambda row: (-_score(row.cell), row.cell.row))
    rest = [Row(cell, None) for cell in table.cells if cell.score is None]
    rest.sort(key=lambda row: (not row.cell.failed, -_published(row.cell), row.cell.method))
    behind = [
        [
            row,
            *(Row(one, None) for one in beside(row.cell, table.twins)),
            *(Row(one, None, one.recipe) for one in table.controls if one.recipe == row.cell.row),
        ]
        for row in rows
    ]
    return [row for group in behind for row in group] + rest


def best(table: Table) -> list[Cell]:
    """Return the methods with the best score, if two or more have runs over two seeds or more."""
    rows = [row for row in ranked(table) if row.rank]
    return [row.cell for row in rows if row.rank == 1] if len(rows) > 1 else []


def _several(cell: Cell) -> bool:
    """Return whether a score has an interval; one of a single seed is not ranked."""
    return cell.score is not None and cell.score.low is not None


def leaderboard(table: Table, caption: str) -> str:
    """Return the cells that were run as HTML, without empty columns; `caption` is HTML too."""
    rows = [row for row in ranked(table) if not _idle(row.cell)]
    return _board(table, rows, caption, "Results") if rows else f'<p class="soft">{caption}</p>'


def waiting(table: Table, summary: str, command: str) -> str:
    """Return the cells that were not run, as one line that opens.

    Args:
        table: theirs.
        summary: what filling them costs, HTML.
        command: that fills them.
    """
    rows = [row for row in ranked(table) if _idle(row.cell)]
    if not rows:
        return ""
    return (
        f'<details class="waiting"><summary>○ {count(rows, "cell")} not run: {summary}</summary>\n'
        f"<pre>{_e(command)}</pre>\n{_board(table, rows, '', 'Not run')}\n</details>"
    )


def _idle(cell: Cell) -> bool:
    return not cell.records and not cell.failed


def _board(table: Table, rows: Sequence[Row], caption: str, title: str) -> str:
    columns = [column for column in COLUMNS if _told(column, rows)]
    task = table.cells[0].task
    named = {"score": f"{task.word[0].upper()}{task.word[1:]}, {task.place}"}
    heads = "".join(
        f'<th scope="col" data-key="{c.key}" data-kind="{c.kind}" data-order="{c.order}">'
        f"{named.get(c.key, c.head)}"
        for c in columns
    )
    lines = "\n".join(_line(row, columns) for row in rows)
    label = _e(f"{title}: {table.pair}, {table.protocol}")
    head = f"<caption><span>{caption}</span></caption>" if caption else ""
    return (
        f'<div class="wide" role="region" aria-label="{label}" tabindex="0">\n'
        f'<table class="board">{head}\n'
        f"<thead><tr>{heads}</thead>\n<tbody>\n{lines}\n</tbody></table></div>"
    )


def named(cell: Cell) -> str:
    """Return a row's name, marked where its settings are from no source or differ from conf's."""
    return cell.row + DAGGER * cell.reconstructed + STAR * bool(cell.departures)


def badge(verdict: Verdict, more: str = "") -> str:
    """Return a verdict as a coloured word, with `more` of it."""
    return f'<span class="v {verdict.name.lower()}">{MARKS[verdict]} {verdict.value}{more}</span>'


def _judgement(row: Row) -> str:
    """Return a cell's verdict; one seed and a control have none."""
    cell = row.cell
    if row.controls is not None:
        return f'<span class="soft">control of {_e(row.controls)}</span>'
    if len(cell.records) == 1:
        return '<span class="v one">1 seed: no verdict</span>'
    other = sorted({precision(record) for record in cell.records} - {"fp32"})
    named = other and cell.verdict not in (Verdict.NO_CLAIM, Verdict.NOT_RUN)
    return badge(cell.verdict, f" ({', '.join(other)})" if named else "")


def signed(value: float) -> str:
    """Return a difference in points, with a minus that is as wide as the plus."""
    return plain(value).replace("-", "−")


def _told(column: Column, rows: Sequence[Row]) -> bool:
    texts = {column.text(row) for row in rows} - {NOTHING}
    return len(texts) > (column.key == "hardware")  # the caption says what all rows share


def _line(row: Row, columns: Sequence[Column]) -> str:
    cells = "".join(
        f'<th scope="row">{c.text(row)}' if c.key == "method" else f"<td>{c.text(row)}"
        for c in columns
    )
    states = {0: ' class="idle"', 1: ' class="one"'}
    state = states.get(len(row.cell.records), "")
    return f'<tr data-method="{_e(row.cell.method)}"{state}>{cells}'


def _method(row: Row) -> str:
    cell = row.cell
    name = (
        _e(cell.row) + f'<abbr title="reconstructed settings">{DAGGER}</abbr>' * cell.reconstructed
    )
    told = _e("; ".join(map(str, cell.departures)))
    return name + f'<abbr title="{told}">{STAR}</abbr>' * bool(cell.departures)


def _score_text(row: Row) -> str:
    cell = row.cell
    if cell.score is None:
        return f'<span class="soft">{"failed" if cell.failed else "not run"}</span>'
    std = f' <span class="soft">± {cell.score.std:.2f}</span>' if cell.score.std is not None else ""
    return f"<b>{cell.score.mean:.2f}</b>{std}"


def _seeds(row: Row) -> str:
    count, failed = len(row.cell.records), len(row.cell.failed)
    words = [str(count)] if count else []
    words += [f'<span class="bad">failed: {failed}</span>'] if failed else []
    return ", ".join(words)


def _interval(of: Estimate | Difference | None, number: Callable[[float], str]) -> str:
    if of is None or of.low is None or of.high is None:
        return NOTHING
    return f"[{number(of.low)}, {number(of.high)}]"


def _gain(row: Row) -> str:
    gain = row.cell.gain
    if gain is None:
        return NOTHING
    interval = _interval(gain, signed)
    words = [signed(gain.mean), f'<span class="soft">{interval}</span>' if interval else ""]
    if row.cell.tie:
        p = f"{row.cell.gain_p:.2f}"
        words.append(f'<abbr class="tie" title="Holm-adjusted p = {p}">≈ tie</abbr>')
    return " ".join(filter(None, words))


def _claim(row: Row) -> str:
    cell = row.cell
    if cell.claimed_gain is None:
        return NOTHING
    same = cell.published is not None and cell.published.source == cell.claim_source
    source = "" if same else f' <span class="soft">{_e(cell.claim_source or "")}</span>'
    return f"{signed(cell.claimed_gain)}{source}"


def _best_minus_last(row: Row) -> str:
    added = row.cell.best_minus_last
    return NOTHING if added is None else signed(added)


def _published_score(row: Row) -> str:
    published = row.cell.published
    if published is None:
        return NOTHING
    std = f" ± {published.std:.2f}" if published.std is not None else ""
    source = _e(published.source)
    if published.url.startswith(("https://", "http://")):  # anything else could be a script
        note = f' title="{_e(published.note)}"' if published.note else ""
        source = f'<a href="{_e(published.url)}"{note}>{source}</a>'
    if published.protocol in EPOCHS:
        mark, words = EPOCHS[published.protocol]
        source += f' <abbr class="soft" title="{words}">{mark}</abbr>'
    return f"{published.score:.2f}{std} {source}"


def _gap(row: Row) -> str:
    return NOTHING if row.cell.gap is None else signed(row.cell.gap)


def _cost(row: Row) -> str:
    price = cost(row.cell.records)
    if price is None:
        return NOTHING
    hours = format(price.hours, ".2f" if price.hours >= 0.1 else ".1g")
    return f"{hours} {price.of}-h"


def _score(cell: Cell) -> float:
    return round(cell.score.mean, 2) if cell.score else 0.0


def _published(cell: Cell) -> float:
    return (cell.published.score if cell.published else None) or 0.0


COLUMNS = (
    Column("rank", "#", lambda row: str(row.rank or NOTHING), "asc"),
    Column("method", "Method", _method, "asc", "text"),
    Column("score", "Score", _score_text, "desc"),
    Column("n", "Seeds", _seeds, "desc"),
    Column(
        "interval", "95% interval", lambda row: _interval(row.cell.score, "{:.2f}".format), "desc"
    ),
    Column("gain", "Gain over KD", _gain, "desc"),
    Column("claim", "Claimed gain", _claim, "desc"),
    Column("verdict", "Verdict", _judgement, "asc", "text"),
    Column("published", "Published", _published_score, "desc"),
    Column("gap", "Ours&nbsp;− published", _gap, "desc"),
    Column("best", "Best&nbsp;− last", _best_minus_last, "desc"),
    Column("cost", "Cost a run", _cost, "asc"),
    Column(
        "hardware",
        "Hardware",
        lambda row: _e("; ".join(machines(row.cell.records))),
        "asc",
        "text",
    ),
)
