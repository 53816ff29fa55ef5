"""What stands behind a table of the results page: its records, and the runs that failed."""

from urllib.parse import quote

from kdbench.ledger.cell import Cell
from kdbench.ledger.leaderboard import named
from kdbench.ledger.ledger import Table
from kdbench.ledger.prices import count
from kdbench.records.contents import Record
from kdbench.system.escapes import as_html as _e


def evidence(table: Table) -> str:
    """Return the evidence for a table: its records, and the runs that failed."""
    parts = []
    changed = [cell for cell in table.rows if cell.departures]
    if changed:
        lines = "".join(
            f"<li>{_e(named(cell))}: {_e('; '.join(map(str, cell.departures)))}" for cell in changed
        )
        parts.append(f'<p class="soft">Settings that are not those of conf:</p><ul>{lines}</ul>')
    failed = [record for cell in table.cells for record in cell.failed]
    if failed:
        lines = "".join(
            f"<li><code>{_e(record.run_id)}</code>: {_e(record.error)}" for record in failed
        )
        parts.append(f"<details open><summary>{count(failed, 'failed run')}</summary>"
                     f"<ul>{lines}</ul></details>")  # fmt: skip
    done = [record for cell in table.cells for record in cell.records]
    if done:
        lines = "".join(
            f"<li>{_e(cell.row)}: seed {', '.join(_record_link(cell, r) for r in cell.records)}"
            for cell in table.cells
            if cell.records
        ) + "".join(
            f"<li>{_e(one.row)}: seed "
            f"{', '.join(_record_link(one, record, 'controls') for record in one.records)}"
            for one in table.controls
        )
        parts.append(f"<details><summary>{count(done, 'record')}</summary>"
                     f'<ul class="records">{lines}</ul></details>')  # fmt: skip
    return "\n".join(parts)


def _record_link(cell: Cell, record: Record, folder: str = "runs") -> str:
    link = f'<a href="{folder}/{quote(record.run_id)}.json">{_e(str(record.seed))}</a>'
    sent = next((one for one in cell.verified if one.run_id == record.run_id), None)
    if sent is None:
        return link
    told = f"weights scored again: {sent.top1:.2f} on {sent.images} images, {sent.date}"
    return f'{link} (<abbr title="{_e(told)}">{_e(sent.by)}, verified</abbr>)'
