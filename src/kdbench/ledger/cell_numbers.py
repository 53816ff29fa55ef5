"""A cell of a table as plain numbers, for CSV and for W&B."""

from kdbench.ledger.cell import Cell
from kdbench.ledger.cells import cost, machines, teachers_of


def numbers(cell: Cell) -> dict[str, object]:
    """Return a cell as a row of numbers, in percent, points and hours."""
    score, gain, published, spent = cell.score, cell.gain, cell.published, cost(cell.records)
    return {
        "dataset": cell.dataset,
        "teacher": cell.teacher,
        "student": cell.student,
        "protocol": cell.protocol,
        "method": cell.method,
        "settings": cell.settings,
        "reconstructed": cell.reconstructed,
        "departures": "; ".join(map(str, cell.departures)),
        "verdict": cell.verdict,
        "n": len(cell.records),
        "seeds": " ".join(str(record.seed) for record in cell.records),
        "failed": len(cell.failed),
        "metric": cell.task.metric,
        "score": score and score.mean,
        "score_std": score and score.std,
        "score_low": score and score.low,
        "score_high": score and score.high,
        "best_on_test": cell.best_on_test and cell.best_on_test.mean,
        "last5": cell.last5 and cell.last5.mean,
        "baseline": cell.baseline,
        "gain": gain and gain.mean,
        "gain_low": gain and gain.low,
        "gain_high": gain and gain.high,
        "gain_n": gain and gain.n,
        "gain_p_holm": cell.gain_p,
        "tie": cell.tie,
        "claimed_gain": cell.claimed_gain,
        "claim_source": cell.claim_source,
        "published": published and published.score,
        "published_std": published and published.std,
        "published_protocol": published and published.protocol,
        "published_source": published and published.source,
        "published_url": published and published.url,
        "gap": cell.gap,
        "cost_hours": spent and spent.hours,
        "cost_of": spent and spent.of,
        "hardware": "; ".join(machines(cell.records)),
        "sent_by": "; ".join(senders(cell)) or None,
        "hash": cell.hash,
        "data_sha256": cell.data or None,
        "teacher_sha256": cell.taught or None,
        "teacher_score": "; ".join(teachers_of(cell.records)) or None,
    }


def senders(cell: Cell) -> list[str]:
    """Return who has sent records of a cell, each once."""
    return sorted({one.by for one in cell.verified})
