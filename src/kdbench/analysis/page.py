"""An analysis as one page that needs nothing but itself."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template

from kdbench.analysis.result import Drawing, Result, Table
from kdbench.ledger.svg import ON_PAGE, sheet, style, tidy
from kdbench.system.escapes import as_html as _e


def render(results: Mapping[str, Result], subjects: Table, what: str, versions: str) -> str:
    """Render the page, with the same bytes for the same results.

    Args:
        results: by measure.
        subjects: the networks.
        what: on which images.
        versions: of what computed them.
    """
    sections = [
        _section(name, result, number) for number, (name, result) in enumerate(results.items())
    ]
    return Template((files("kdbench.analysis") / "page.html").read_text("utf-8")).substitute(
        sheet=sheet(),
        what=_e(what),
        sections="\n".join(sections),
        subjects=_table(subjects),
        versions=_e(versions),
    )


def _section(name: str, result: Result, number: int) -> str:
    figures = "\n".join(
        f"<figure><figcaption><b>{_e(one.title)}</b> {_e(one.note)}</figcaption>\n"
        f"{svg_of(one, f'm{number}-{i}-')}</figure>"
        for i, one in enumerate(result.drawings)
    )
    tables = "\n".join(_table(table) for table in result.tables)
    charts = f'<div class="charts">{figures}</div>' if figures else ""
    return f"""<section class="table" id="{_e(name)}" aria-labelledby="h{number}">
<h2 id="h{number}">{_e(name.capitalize())}</h2>
{tables}
{charts}
</section>"""


def svg_of(drawing: Drawing, prefix: str) -> str:
    """Render a drawing as an element of the page; `prefix` keeps its ids apart."""
    with style():
        return tidy(drawing.draw(ON_PAGE), (), drawing.title, prefix)


def _table(table: Table) -> str:
    heads = "".join(f'<th scope="col">{_e(head)}' for head in table.heads)
    rows = "\n".join(_row(row) for row in table.rows)
    label = _e(table.heads[0])
    return f"""<div class="wide" role="region" aria-label="Table by {label}" tabindex="0">
<table class="board"><caption><span>{_e(table.caption)}</span></caption>
<thead><tr>{heads}</thead>
<tbody>
{rows}
</tbody></table></div>"""


def _row(cells: Sequence[str]) -> str:
    first, *rest = map(_e, cells)
    return f'<tr><th scope="row">{first}<td>{"<td>".join(rest)}'
