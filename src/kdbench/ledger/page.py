"""`results/index.html`: the whole ledger as one self-contained page."""

import base64
import hashlib
import re
from collections import Counter
from importlib.resources import files
from string import Template

from kdbench.ledger.cells import machines, teachers_of
from kdbench.ledger.charts import charts
from kdbench.ledger.commands import commands, filling
from kdbench.ledger.evidence import evidence
from kdbench.ledger.formats import schools_of, twins_text
from kdbench.ledger.leaderboard import badge, best, leaderboard, named, ranked, waiting
from kdbench.ledger.ledger import Ledger, Table, tables
from kdbench.ledger.prices import Price, hours, price
from kdbench.ledger.significance import Verdict
from kdbench.ledger.wanted import headline, most_wanted
from kdbench.system.escapes import as_html as _e

PROTOCOL = re.compile(r"(.+)-(\d+)(ep|steps)-b(\d+)(?:-(.+))?-last")
JUDGED = (Verdict.REPRODUCED, Verdict.NOT_REPRODUCED, Verdict.TIE)
EMPTY = """<p><b>There are no results yet.</b> <code>make quickstart</code> trains the first
ones; each run leaves a record, and <code>kdbench-report</code> makes this page of them.</p>"""


def render(ledger: Ledger) -> str:
    """Return the page, with the same bytes for the same ledger."""
    made = tables(ledger)
    first = headline(made)
    made.sort(key=lambda table: (not _same_pair(table, first), table is not first, not table.run))
    script, sheet = _text("page.js"), _text("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The page loads nothing and runs no script but this one.
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    sections = [_section(table, i, made) for i, table in enumerate(made)]
    problems = "".join(f"<li>{_e(problem)}" for problem in ledger.problems)
    return Template(_text("page.html")).substitute(
        {verdict.name.lower(): badge(verdict) for verdict in Verdict},
        policy=policy,
        sheet=sheet,
        script=script,
        counts=_counts(ledger, made),
        to_problems=', <a href="#problems">what was left out</a>' if problems else "",
        problems=f'<h2 id="problems">Left out</h2>\n<ul>{problems}</ul>' if problems else "",
        results="\n".join([_filters(made), _contents(made), _wanted(made), *sections])
        if made
        else EMPTY,
    )


def _counts(ledger: Ledger, made: list[Table]) -> str:
    runs = sum(len(cell.records) for cell in ledger.cells)
    done = sum(bool(cell.records) for cell in ledger.cells)
    waiting = sum(cell.verdict is Verdict.NOT_RUN for cell in ledger.cells)
    return (
        f"{runs} finished runs fill {done} cells of {len(made)} tables; "
        f"{waiting} more cells are waiting to be run."
    )


def _same_pair(table: Table, first: Table | None) -> bool:
    if first is None:
        return False
    return (table.dataset, table.teacher, table.student) == (
        *(first.dataset, first.teacher, first.student),
    )


def _wanted(made: list[Table]) -> str:
    """Return the cells that are wanted most, each with its command and cost."""
    cells = most_wanted(made)
    if not cells:
        return ""
    lines = "\n".join(
        f'<tr><th scope="row">{_e(one.method)}<td>{", ".join(map(str, one.seeds))}<td>{_e(one.why)}'
        f"<td>{_cost(one.cost)}<td><code>{_e(one.command)}</code>"
        for one in cells
    )
    heads = ("Method", "Seeds", "For", "Cost, all seeds", "Command")
    by = next((one.cost.by for one in cells if one.cost), None)
    told = f" Costs follow from what an epoch took: {_e(by)}." if by else ""
    if by and not by.startswith("fp32"):
        told += " The commands train in fp32, which takes longer: <code>kdbench-estimate</code>."
    return f"""<section id="wanted" aria-labelledby="hw">
<h2 id="hw">Most wanted</h2>
<p>What would say most about the table that papers show first.
<code>make campaign BUDGET=8h</code> trains these in this order, as far as the time goes, and goes
on where it stopped; results of others are welcome (<code>docs/submitting.md</code>).{told}</p>
<div class="wide" role="region" aria-label="Most wanted" tabindex="0">
<table><thead><tr>{"".join(f'<th scope="col">{head}' for head in heads)}</thead>
<tbody>
{lines}
</tbody></table></div>
</section>"""


def _cost(found: Price | None) -> str:
    return "not measured yet" if found is None else _e(hours(found.hours, found.of))


def _filling(table: Table, made: list[Table]) -> str:
    """Return what the cells that were not run would cost, as HTML."""
    match = PROTOCOL.fullmatch(table.protocol)
    found = price(made, table, int(match[2])) if match else None
    if found is None:
        return "their cost was not measured yet, <code>kdbench-estimate</code> says it"
    count = sum(not cell.records and not cell.failed for cell in table.cells)
    total = hours(count * found.hours, found.of)
    return f"one seed each is about {_e(total)} ({_e(found.by)})"


def _filters(made: list[Table]) -> str:
    pairs = {_pair_id(table): f"{table.dataset}: {_pair(table)}" for table in made}
    protocols = {table.protocol: table.protocol for table in made}
    methods = {cell.method: cell.method for table in made for cell in table.cells}
    return f"""<form id="filters" role="search" aria-label="Filter the tables" hidden>
{_select("pair", "Pair", pairs)}
{_select("protocol", "Protocol", protocols)}
{_select("method", "Method", methods)}
<label>Text<input type="search" name="q" placeholder="resnet dkd tie" autocomplete="off"></label>
<label class="box"><input type="checkbox" name="run">Only what was run</label>
<button type="reset">Show everything</button>
<output id="count" aria-live="polite"></output>
</form>
<noscript><p>Everything is on this page; filters and sorting need JavaScript.</p></noscript>"""


def _select(name: str, label: str, options: dict[str, str]) -> str:
    items = "".join(f'<option value="{_e(v)}">{_e(options[v])}' for v in sorted(options))
    return f'<label>{label}<select name="{name}"><option value="">all{items}</select></label>'


def _contents(made: list[Table]) -> str:
    """Return the contents, with a line for each table."""
    lines = "\n".join(_entry(table) for table in made)
    heads = [
        "Pair",
        "Protocol",
        "Methods run",
        "Best, n ≥ 2",
        *(v.value.capitalize() for v in JUDGED),
    ]
    return f"""<div class="wide" role="region" aria-label="All tables" tabindex="0">
<table id="contents"><caption>All tables</caption>
<thead><tr>{"".join(f'<th scope="col">{head}' for head in heads)}</thead>
<tbody>
{lines}
</tbody></table></div>"""


def _entry(table: Table) -> str:
    run = [cell for cell in table.cells if cell.records]
    counts = Counter(cell.verdict for cell in run)
    leading = ", ".join(named(cell) for cell in best(table))
    name, state = _e(table.name), "" if table.run else ' class="idle"'
    words = [_e(table.protocol), f"{len(run)} of {len(table.cells)}", _e(leading)]
    words += [str(counts[verdict] or "") for verdict in JUDGED]
    link = f'<th scope="row"><a href="#{name}">{_e(_pair(table))}</a>'
    return f'<tr data-section="{name}"{state}>{link}<td>{"<td>".join(words)}'


def _section(table: Table, index: int, made: list[Table]) -> str:
    records = [record for cell in table.cells for record in cell.records]
    taught = _e("; ".join(teachers_of(records)))
    places = machines(records)
    caption = f"{_e(_pair(table))} on {_e(table.dataset)}."
    caption += f" Teacher, measured here: {taught}." if taught else ""
    schools = _e("; ".join(schools_of(table)))
    caption += f" Teacher, published: {schools}." if schools else ""
    caption += f" Hardware: {_e('; '.join(places))}." if places else ""
    caption += f" Rows of {twins_text(table, _e)}" if table.twins else ""
    cells = [row.cell for row in ranked(table) if row.cell.score]
    names = {cell.row: named(cell) for cell in cells}
    drawn = charts(cells, names, f"c{index}") if cells else []
    figures = "\n".join(
        f"<figure><figcaption><b>{_e(c.title)}</b> {_e(c.note)}</figcaption>\n{c.svg}</figure>"
        for c in drawn
    )
    return f"""<section class="table" id="{_e(table.name)}" data-pair="{_e(_pair_id(table))}" \
data-protocol="{_e(table.protocol)}" aria-labelledby="h{index}">
<h2 id="h{index}">{_e(_pair(table))}</h2>
<p class="soft">{_e(_protocol_words(table.protocol))}</p>
{leaderboard(table, caption)}
{evidence(table)}
{_command(table)}
{waiting(table, _filling(table, made), filling(table))}
{f'<div class="charts">{figures}</div>' if figures else ""}
</section>"""


def _command(table: Table) -> str:
    """Return the command of the cells that were run."""
    if not table.run:
        return ""
    return f"<details><summary>Command</summary><pre>{_e(commands(table))}</pre></details>"


def _protocol_words(protocol: str) -> str:
    """Return a protocol's name in words."""
    match = PROTOCOL.fullmatch(protocol)
    if match is None:
        return f"Protocol {protocol}."
    dataset, length, unit, batch, others = match.groups()
    unit = {"ep": "epoch", "steps": "step"}[unit]
    words = f"Protocol {protocol}: {dataset}, {length} {unit}s, batches of {batch}"
    words += f", {others.replace('-', ', ')}" if others else ", fp32"
    return f"{words}; scored on the test set after the last {unit}, so no test score chooses one."


def _pair(table: Table) -> str:
    pair = table.pair.replace("->", "→")
    return f"{pair}, {table.mark}" if table.mark else pair


def _pair_id(table: Table) -> str:
    return f"{table.dataset}-{table.teacher}_{table.student}"


def _text(name: str) -> str:
    return (files("kdbench.ledger") / name).read_text(encoding="utf-8")
