"""Tables as text: Markdown and LaTeX for readers, CSV for programs."""

import csv
import io
from collections.abc import Callable, Sequence

from kdbench.ledger.cell import Cell
from kdbench.ledger.cell_numbers import numbers, senders
from kdbench.ledger.cells import BASELINE, Cost, cost, machines, teachers_of
from kdbench.ledger.ledger import Table
from kdbench.ledger.significance import LEVEL, Difference, Estimate, estimate
from kdbench.records.contents import FailedRecord
from kdbench.system.escapes import as_csv, as_latex, as_markdown, printable

FORMATS = ("md", "csv", "tex")
DAGGER = "†"
STAR = "*"

# Columns of tables for readers: those of every table, and those that need published scores.
SCORES = ("method", "score", "95% interval", "best-last")
COMPACT = (*SCORES, "gain over KD", "cost")
CLAIMS = ("gain over KD", "claimed gain", "published", "gap", "verdict")
FULL = (*SCORES, "last 5", *CLAIMS, "cost", "hardware")

Escape = Callable[[str], str]  # of a medium


def render(made: Sequence[Table], form: str) -> str:
    """Return tables as text; `form` is one of FORMATS."""
    if form == "csv":
        return comma_separated(made)
    return "\n\n".join((markdown if form == "md" else latex)(table) for table in made)


def markdown(table: Table) -> str:
    """Return the table in Markdown, with its title and notes."""
    columns, rows = _text(table, as_markdown)
    return drawn(_title(table, as_markdown), columns, rows, _notes(table, as_markdown))


def drawn(title: str, columns: list[str], rows: Sequence[list[str]], notes: Sequence[str]) -> str:
    """Return a table in Markdown, from texts that are Markdown already."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    lines = [columns, ["-" * width for width in widths], *rows]
    padded = [[text.ljust(n) for text, n in zip(line, widths, strict=True)] for line in lines]
    grid = [f"| {' | '.join(line)} |" for line in padded]
    return "\n".join([f"**{title}**", "", *grid, "", *(f"- {note}" for note in notes)])


def latex(table: Table) -> str:
    """Return the table as a booktabs tabular, with its title and notes as comments."""
    columns, rows = _text(table, as_latex)
    lines = [" & ".join(row) + r" \\" for row in rows]
    return "\n".join(
        [
            f"% {_title(table, printable)}",
            rf"\begin{{tabular}}{{{'l' * len(columns)}}}",
            r"\toprule",
            " & ".join(columns) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            *(f"% {note}" for note in _notes(table, printable)),
        ]
    )


def comma_separated(made: Sequence[Table]) -> str:
    """Return all numbers of some tables as CSV, with a line for each cell."""
    out = io.StringIO()
    lines = [
        {key: _plain(value) for key, value in numbers(cell).items()}
        for table in made
        for cell in table.cells
    ]
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue().rstrip("\n")


def _plain(value: object) -> object:
    if isinstance(value, float):
        return round(value, 6)  # further digits would depend on the versions of libraries
    return as_csv(value) if isinstance(value, str) else value


def _title(table: Table, escape: Escape) -> str:
    places = f"{escape(table.dataset)}, {_pair(table, escape)}, protocol {escape(table.protocol)}"
    return f"{places}, {escape(table.mark)}" if table.mark else places


def _pair(table: Table, escape: Escape) -> str:
    return " -> ".join(escape(name) for name in table.pair.split(" -> "))


def _text(table: Table, escape: Escape) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows for readers; without published scores, measured columns alone."""
    columns = list(FULL if any(cell.published for cell in table.cells) else COMPACT)
    details = {name: None for cell in table.cells for one in cell.records for name in one.details}
    place = columns.index("best-last") + 1
    columns[place:place] = details
    named = {"score": f"{table.cells[0].task.word} {table.cells[0].task.place}"}
    heads = [escape(named.get(column, column)) for column in columns]
    if table.baseline != BASELINE:
        heads = [head.replace("over KD", f"over {escape(table.baseline)}") for head in heads]
    rows = [[_field(cell, column, escape) for column in columns] for cell in table.rows]
    return heads, rows


def _field(cell: Cell, column: str, escape: Escape) -> str:
    text = escape(FIELDS[column](cell) if column in FIELDS else _detail(cell, column))
    if column != "method":
        return text
    star = STAR if escape is as_markdown else escape(STAR)  # alone in its cell, it is no emphasis
    return text + escape(DAGGER * cell.reconstructed) + star * bool(cell.departures)


def score_text(score: Estimate | None) -> str:
    """Return mean ± sample standard deviation (n); nothing where there is none."""
    if score is None:
        return ""
    spread = "" if score.std is None else f" ± {score.std:.2f}"
    return f"{score.mean:.2f}{spread} ({score.n})"


def _detail(cell: Cell, column: str) -> str:
    found = [one for record in cell.records if (one := record.details.get(column)) is not None]
    return score_text(estimate(found) if found else None)


def interval_text(of: Estimate | Difference | None, sign: str = "") -> str:
    """Return an interval, low to high; nothing where there is none."""
    if of is None or of.low is None:
        return ""
    return f"{of.low:{sign}.2f} to {of.high:{sign}.2f}"


def signed(value: float | None) -> str:
    """Return a difference in points, without a negative zero; nothing where there is none."""
    return "" if value is None else f"{round(value, 2) + 0.0:+.2f}"


def gain_text(cell: Cell) -> str:
    """Return a cell's gain with interval and p; nothing where there is none."""
    gain = cell.gain
    if gain is None:
        return ""
    shared = "" if cell.score and gain.n == cell.score.n else f", {gain.n} shared"
    if cell.gain_p is None:
        return signed(gain.mean) + shared
    tie = "tie, " if cell.tie else ""
    p = "p < 0.001" if cell.gain_p < 0.001 else f"p {cell.gain_p:.2g}"
    return f"{tie}{signed(gain.mean)} ({interval_text(gain, '+')}), {p}{shared}"


def _published(cell: Cell) -> str:
    score = cell.published
    if score is None:
        return ""
    spread = "" if score.std is None else f" ± {score.std:.2f}"
    epoch = {"last": "last epoch", "best": "best epoch", "unknown": "epoch unknown"}
    return f"{score.score:.2f}{spread} ({score.source}, {epoch[score.protocol]})"


def _claimed(cell: Cell) -> str:
    source = cell.published.source if cell.published else None
    other = f" ({cell.claim_source})" if cell.claim_source not in (source, None) else ""
    return signed(cell.claimed_gain) + other


def _verdict(cell: Cell) -> str:
    failed = f", {len(cell.failed)} failed" if cell.failed else ""
    return f"{cell.verdict}{failed}"


def cost_text(found: Cost | None) -> str:
    """Return a run's cost in hours or minutes; nothing where it was not measured."""
    if found is None:
        return ""
    hours, of = found
    return f"{hours:.1f} {of}-h" if hours >= 1 else f"{hours * 60:.1f} {of}-min"


def _hardware(cell: Cell) -> str:
    return "; ".join(machines(cell.records))


FIELDS: dict[str, Callable[[Cell], str]] = {
    "method": lambda cell: cell.row,
    "score": lambda cell: score_text(cell.score),
    "95% interval": lambda cell: interval_text(cell.score),
    "best-last": lambda cell: signed(cell.best_minus_last),
    "last 5": lambda cell: "" if cell.last5 is None else f"{cell.last5.mean:.2f}",
    "gain over KD": gain_text,
    "claimed gain": _claimed,
    "published": _published,
    "gap": lambda cell: signed(cell.gap),
    "verdict": _verdict,
    "cost": lambda cell: cost_text(cost(cell.records)),
    "hardware": _hardware,
}


def _notes(table: Table, escape: Escape) -> list[str]:
    """Return the notes on the marks that occur in this table."""
    cells = table.rows
    notes = []
    word = cells[0].task.word
    if any(cell.records for cell in cells):
        notes.append(f"{word} in percent: mean ± sample standard deviation over (n) seeds.")
    records = [record for cell in cells for record in (*cell.records, *cell.failed)]
    if taught := teachers_of(records):
        notes.append(f"teacher's {word}, measured here: {escape('; '.join(taught))}.")
    if schools := schools_of(table):
        notes.append(f"teacher's {word}, published: {escape('; '.join(schools))}.")
    if any(cell.gain for cell in cells):
        over = "KD" if table.baseline == BASELINE else escape(table.baseline)
        notes.append(
            f"gain over {over}: points over the same seeds, 95% interval, p adjusted over this "
            f"table (Holm); a tie is p ≥ {LEVEL}."
        )
    if any(cell.gap is not None for cell in cells):
        notes.append("gap: ours minus published, at the best epoch on test where theirs is.")
    if any(cell.reconstructed for cell in cells):
        notes.append(f"{DAGGER} settings that no source gives in full: reconstructed.")
    notes += [
        f"{_field(cell, 'method', escape)}: {escape('; '.join(map(str, cell.departures)))}."
        for cell in cells
        if cell.departures
    ]
    if table.twins:
        notes.append(twins_text(table, escape))
    if table.controls:
        names = ", ".join(f"{one.row} of {one.recipe}" for one in table.controls)
        notes.append(f"controls, which explain a score and rank nothing: {escape(names)}.")
    sent = [f"{cell.row} by {', '.join(senders(cell))}" for cell in cells if cell.verified]
    if sent:
        notes.append(f"sent by others, their weights scored again here: {escape('; '.join(sent))}.")
    used = machines([record for cell in cells for record in cell.records])
    if used and not any(cell.published for cell in cells):
        notes.append(f"hardware: {escape('; '.join(used))}.")
    return notes + [
        f"failed: {escape(_failure(cell, record))}" for cell in cells for record in cell.failed
    ]


def twins_text(table: Table, escape: Escape) -> str:
    """Return what says why rows of another precision stand in a table."""
    told = [
        f"{escape(twin.cell.row)} {signed(twin.difference.mean)} "
        f"({interval_text(twin.difference, '+')}, n = {twin.difference.n})"
        for twin in table.twins
    ]
    return (
        "another precision than fp32, shown since its paired seeds differ from fp32's by no more "
        f"than seeds do, with gains over KD of its own precision: {', '.join(told)}."
    )


def schools_of(table: Table) -> list[str]:
    """Return the published scores of a table's teachers, a few words each."""
    return [f"{one.student}: {one.score:.2f}% ({one.source})" for one in table.schools]


def _failure(cell: Cell, record: FailedRecord) -> str:
    error = " ".join(record.error.split())
    return f"{cell.row}, seed {record.seed}: {error}"
