"""Charts of the results page with a row for each method: gains, scores, seeds."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdbench.ledger.cell import Cell
from kdbench.ledger.cells import BASELINE
from kdbench.ledger.significance import Difference, Estimate
from kdbench.ledger.svg import HUES, INK, PAPER, SOFT, axes_of, token

ROW = 21  # pixels of a method's row in a chart
LETTER = 6.7  # an upper bound of a letter's mean width, in pixels
Drawn = tuple[str, str, Figure, list[str]]  # title, note, drawing, words of its marks by number


def rows(cells: Sequence[Cell], names: dict[str, str]) -> tuple[Figure, Axes]:
    """Draw a row for each method, best on top, over an axis of scores."""
    left = min(190.0, 14 + LETTER * max(len(names[cell.row]) for cell in cells))
    figure, axes = axes_of(ROW * len(cells) + 50, left, 42)
    axes.set_yticks(range(len(cells)), [short(names[cell.row]) for cell in cells])
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="both")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xlabel(f"{cells[0].task.word}, %")
    return figure, axes


def dot(cell: Cell, colour: str) -> dict[str, Any]:
    """Return how a cell's own score is drawn: hollow where it is of one seed."""
    one = len(cell.records) == 1
    return {"color": colour, "mfc": PAPER if one else colour, "mew": 1.4 if one else 0}


def draw_claim(axes: Axes, value: float, y: int, mark: str) -> None:
    """Draw a published number as a diamond, below our row."""
    look: dict[str, Any] = {"marker": "D", "ms": 5.5, "mfc": PAPER, "mec": HUES[1]}
    axes.plot(value, y + 0.2, gid=mark, ls="", **look)


def draw_interval(axes: Axes, ours: Difference | Estimate, y: int) -> None:
    """Draw the 95% interval of a score or gain of ours, where there is one."""
    if ours.low is not None and ours.high is not None:
        axes.plot((ours.low, ours.high), (y, y), color=HUES[0], lw=2)


def gains(cells: Sequence[Cell], names: dict[str, str]) -> Drawn | None:
    """Draw a forest plot: our gains with their intervals, and the claimed ones beside them."""
    shown = [cell for cell in cells if cell.gain is not None]
    if not shown:
        return None
    shown.sort(key=lambda cell: -cell.gain.mean if cell.gain else 0.0)
    figure, axes = rows(shown, names)
    titles: list[str] = []
    over = next((cell.baseline for cell in shown if cell.baseline), BASELINE)
    axes.axvline(0, color=SOFT, lw=1, ls=(0, (4, 3)))
    edge = _edge([cell.gain.mean for cell in shown if cell.gain])
    for y, cell in enumerate(shown):
        assert cell.gain is not None
        gain = cell.gain
        if cell.claimed_gain is not None:
            text = f"{names[cell.row]}, claimed: {cell.claimed_gain:+.2f} ({cell.claim_source})"
            draw_claim(axes, cell.claimed_gain, y, token(titles, text))
        text = f"{names[cell.row]}, our gain: {gain.mean:+.2f} (n = {gain.n})"
        draw_interval(axes, gain, y)
        at, shape = (gain.mean, "o") if gain.mean > edge else (edge, "<")
        axes.plot(at, y, shape, ms=6.5, gid=token(titles, text), **dot(cell, HUES[0]))
    if edge > -math.inf:
        axes.set_xlim(left=1.08 * edge)
    axes.set_xlabel(f"gain over {'KD' if over == BASELINE else over}, points")
    note = "Dots: our gain with its 95% interval; hollow: one seed, which says nothing yet."
    note += " Arrow: a loss beyond the axis." if edge > -math.inf else ""
    if any(cell.claimed_gain is not None for cell in shown):
        note += " Diamonds: the published claim."
    return "Gains over " + ("KD" if over == BASELINE else over), note, figure, titles


def _edge(values: Sequence[float]) -> float:
    """Return where the axis ends for losses so large that the other gains could not be read."""
    others = [abs(value) for value in values if value > min(values)]
    edge = -2 * max(others, default=math.inf)
    return edge if min(values) < 2 * edge else -math.inf


def scores(cells: Sequence[Cell], names: dict[str, str]) -> Drawn:
    """Draw our scores with their intervals, and the published ones beside them."""
    figure, axes = rows(cells, names)
    titles: list[str] = []
    for y, cell in enumerate(cells):
        assert cell.score is not None
        ours, published = cell.score, cell.published
        if published is not None and published.score is not None:
            if published.std is not None:
                ends = published.score - published.std, published.score + published.std
                axes.plot(ends, (y + 0.2, y + 0.2), color=HUES[1], lw=1)
            text = f"{names[cell.row]}, published: {published.score:.2f} ({published.source})"
            draw_claim(axes, published.score, y, token(titles, text))
        text = f"{names[cell.row]}, ours: {ours.mean:.2f} (n = {ours.n})"
        draw_interval(axes, ours, y)
        axes.plot(ours.mean, y, "o", ms=6.5, gid=token(titles, text), **dot(cell, HUES[0]))
    note = f"Dots: our mean at the {cells[0].task.place}, with its 95% interval; hollow: one seed, "
    note += "no interval."
    if any(cell.published for cell in cells):
        note += " Diamonds: the published score, with its standard deviation where one is given."
        return "Published and ours", note, figure, titles
    return "Scores and intervals", note, figure, titles


def seeds(cells: Sequence[Cell], names: dict[str, str]) -> Drawn | None:
    """Draw the score of every seed; nothing where no cell has two."""
    if all(len(cell.records) < 2 for cell in cells):
        return None
    figure, axes = rows(cells, names)
    titles: list[str] = []
    over = next((cell.baseline for cell in cells if cell.baseline), BASELINE)
    base = next((cell.score for cell in cells if cell.row == over), None)
    if base is not None:
        axes.axvline(base.mean, color=SOFT, lw=1, ls=(0, (4, 3)))
    for y, cell in enumerate(cells):
        assert cell.score is not None
        mid = cell.score.mean
        axes.plot((mid, mid), (y - 0.32, y + 0.32), color=INK, lw=1.6)
        for record in cell.records:
            text = f"{names[cell.row]}, seed {record.seed}: {record.headline:.2f}"
            look: dict[str, Any] = {"color": HUES[0], "alpha": 0.65, "mew": 0}
            axes.plot(record.headline, y, "o", ms=6, gid=token(titles, text), **look)
    note = f"Dots: one seed each, at the {cells[0].task.place}. Bars: their mean."
    note += " Dashed: the mean of KD." if base is not None else ""
    return "Every seed", note, figure, titles


def short(name: str) -> str:
    """Return a name that fits beside a chart."""
    return name if len(name) <= 28 else f"{name[:27]}…"
