"""The charts of the results page."""

import math
from collections.abc import Sequence
from statistics import mean
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from kdbench.ledger.cell import Cell
from kdbench.ledger.cells import BASELINE, BASELINES, cost
from kdbench.ledger.svg import GRID, HUES, INK, PAPER, SOFT, WIDTH, axes_of, style, tidy, token

ROW = 21  # pixels of a method's row in a chart
LETTER = 6.7  # an upper bound of a letter's mean width, in pixels
LONG = 30  # epochs from which on the beginning of a curve may be cut off
POINTS = 80  # of a curve at most, for a chart has no more pixels


class Chart(NamedTuple):
    """A drawing and its text."""

    title: str
    note: str  # an explanation of the drawing
    svg: str


def charts(cells: Sequence[Cell], names: dict[str, str], prefix: str) -> list[Chart]:
    """Draw the charts of one table.

    Args:
        cells: its methods with runs, best first.
        names: the name of each row.
        prefix: the prefix of every id in the drawings, unique in the page.
    """
    with style():
        drawings = _gains, _scores, _seeds, _curves
        drawn = [chart for draw in drawings if (chart := draw(cells, names))]
        priced = [(cell, price) for cell in cells if (price := cost(cell.records))]
        for of in sorted({price.of for _, price in priced}):
            found = [(cell, price.hours) for cell, price in priced if price.of == of]
            if max(found, key=_second)[1] > 1.05 * min(found, key=_second)[1]:  # else one column
                drawn.append(_costs(found, names, f"{of}-h"))
        return [
            Chart(title, note, tidy(figure, titles, title, f"{prefix}-{i}"))
            for i, (title, note, figure, titles) in enumerate(drawn)
        ]


def _second(pair: tuple[Cell, float]) -> float:
    return pair[1]


Drawn = tuple[str, str, Figure, list[str]]  # title, note, drawing, words of its marks by number


def _rows(cells: Sequence[Cell], names: dict[str, str]) -> tuple[Figure, Axes]:
    """Draw a row for each method, best on top, over an axis of scores."""
    left = min(190.0, 14 + LETTER * max(len(names[cell.row]) for cell in cells))
    figure, axes = axes_of(ROW * len(cells) + 50, left, 42)
    axes.set_yticks(range(len(cells)), [_short(names[cell.row]) for cell in cells])
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="both")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xlabel(f"{cells[0].task.word}, %")
    return figure, axes


def _dot(cell: Cell, colour: str) -> dict[str, Any]:
    """Return how a cell's own score is drawn: hollow where it is of one seed."""
    one = len(cell.records) == 1
    return {"color": colour, "mfc": PAPER if one else colour, "mew": 1.4 if one else 0}


def _gains(cells: Sequence[Cell], names: dict[str, str]) -> Drawn | None:
    """Draw a forest plot: our gains with their intervals, and the claimed ones beside them."""
    shown = [cell for cell in cells if cell.gain is not None]
    if not shown:
        return None
    shown.sort(key=lambda cell: -cell.gain.mean if cell.gain else 0.0)
    figure, axes = _rows(shown, names)
    titles: list[str] = []
    over = next((cell.baseline for cell in shown if cell.baseline), BASELINE)
    axes.axvline(0, color=SOFT, lw=1, ls=(0, (4, 3)))
    edge = _edge([cell.gain.mean for cell in shown if cell.gain])
    for y, cell in enumerate(shown):
        assert cell.gain is not None
        gain = cell.gain
        if cell.claimed_gain is not None:
            text = f"{names[cell.row]}, claimed: {cell.claimed_gain:+.2f} ({cell.claim_source})"
            look: dict[str, Any] = {"marker": "D", "ms": 5.5, "mfc": PAPER, "mec": HUES[1]}
            axes.plot(cell.claimed_gain, y + 0.2, gid=token(titles, text), ls="", **look)
        text = f"{names[cell.row]}, our gain: {gain.mean:+.2f} (n = {gain.n})"
        if gain.low is not None and gain.high is not None:
            axes.plot((gain.low, gain.high), (y, y), color=HUES[0], lw=2)
        at, shape = (gain.mean, "o") if gain.mean > edge else (edge, "<")
        axes.plot(at, y, shape, ms=6.5, gid=token(titles, text), **_dot(cell, HUES[0]))
    if edge > -math.inf:
        axes.set_xlim(left=1.08 * edge)
    axes.set_xlabel(f"gain over {'KD' if over == BASELINE else over}, points")
    note = "Dots: our gain with its 95% interval; hollow: one seed, which says nothing yet."
    note += " Arrow: a loss beyond the axis." if edge > -math.inf else ""
    if any(cell.claimed_gain is not None for cell in shown):
        note += " Diamonds: the published claim."
    return "Gains over " + ("KD" if over == BASELINE else over), note, figure, titles


def _edge(gains: Sequence[float]) -> float:
    """Return where the axis ends for losses so large that the other gains could not be read."""
    others = [abs(gain) for gain in gains if gain > min(gains)]
    edge = -2 * max(others, default=math.inf)
    return edge if min(gains) < 2 * edge else -math.inf


def _scores(cells: Sequence[Cell], names: dict[str, str]) -> Drawn:
    figure, axes = _rows(cells, names)
    titles: list[str] = []
    for y, cell in enumerate(cells):
        assert cell.score is not None
        ours, published = cell.score, cell.published
        if published is not None and published.score is not None:
            if published.std is not None:
                ends = published.score - published.std, published.score + published.std
                axes.plot(ends, (y + 0.2, y + 0.2), color=HUES[1], lw=1)
            text = f"{names[cell.row]}, published: {published.score:.2f} ({published.source})"
            look: dict[str, Any] = {"marker": "D", "ms": 5.5, "mfc": PAPER, "mec": HUES[1]}
            axes.plot(published.score, y + 0.2, gid=token(titles, text), ls="", **look)
        text = f"{names[cell.row]}, ours: {ours.mean:.2f} (n = {ours.n})"
        if ours.low is not None and ours.high is not None:
            axes.plot((ours.low, ours.high), (y, y), color=HUES[0], lw=2)
        axes.plot(ours.mean, y, "o", ms=6.5, gid=token(titles, text), **_dot(cell, HUES[0]))
    note = f"Dots: our mean at the {cells[0].task.place}, with its 95% interval; hollow: one seed, "
    note += "no interval."
    if any(cell.published for cell in cells):
        note += " Diamonds: the published score, with its standard deviation where one is given."
        return "Published and ours", note, figure, titles
    return "Scores and intervals", note, figure, titles


def _seeds(cells: Sequence[Cell], names: dict[str, str]) -> Drawn | None:
    if all(len(cell.records) < 2 for cell in cells):
        return None
    figure, axes = _rows(cells, names)
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


def _curves(cells: Sequence[Cell], names: dict[str, str]) -> Drawn | None:
    curves = {cell.row: _curves_of(cell) for cell in cells}
    cells = [cell for cell in cells if curves[cell.row]]
    epochs = max((len(curves[cell.row][0]) for cell in cells), default=0)
    if epochs < 2:
        return None
    chosen = [c.row for c in cells if c.method in BASELINES][: len(HUES)]
    others = [c.row for c in cells if c.method not in BASELINES]
    chosen += others[: len(HUES) - len(chosen)]
    shown = [cell.row for cell in cells if cell.row in chosen]  # best first
    right = min(150.0, 16 + LETTER * max(len(names[method]) for method in shown))
    figure, axes = axes_of(310, 40, 42, right)
    titles: list[str] = []
    ends = {}
    for cell in reversed(cells):
        lines = curves[cell.row]
        at = _sampled(len(lines[0]))
        places = _places(cell)
        x, middle = [places[i] for i in at], [mean(line[i] for line in lines) for i in at]
        mark = token(titles, names[cell.row])
        if cell.row not in shown:
            axes.plot(x, middle, color=GRID, lw=1, gid=mark)
            continue
        place = shown.index(cell.row)
        if len(lines) > 1:
            low, high = ([edge(line[i] for line in lines) for i in at] for edge in (min, max))
            axes.fill_between(x, low, high, color=HUES[place], alpha=0.15, lw=0)
        dash = "-" if place < 4 else (0, (5, 2))
        axes.plot(x, middle, color=HUES[place], lw=1.6, ls=dash, gid=mark)
        ends[place] = middle[-1]
    axes.set_xlim(_places(cells[0])[0], max(_places(cell)[-1] for cell in cells))
    if epochs >= LONG:  # curves differ late in training
        lines = [line for cell in cells for line in curves[cell.row]]
        axes.set_ylim(bottom=min(line[len(line) // 3] for line in lines))
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(axis="y", length=0, labelcolor=SOFT)
    task = cells[0].task
    axes.set_xlabel(f"{task.length.removesuffix('s')}; {task.word} on the test set, %")
    for place, y in _apart(axes, ends, 15).items():
        axes.text(1.02, y, _short(names[shown[place]]), color=HUES[place], va="center",
                  transform=axes.transAxes)  # fmt: skip
    note = "Lines: mean over seeds. Bands: lowest to highest seed."
    note += f" Every {step}th epoch and the last." if (step := _step(epochs)) > 1 else ""
    note += " The first third lies partly below the axis." if epochs >= LONG else ""
    note += " Grey: the other methods." if len(shown) < len(cells) else ""
    return "Learning curves", note, figure, titles


def _costs(priced: Sequence[tuple[Cell, float]], names: dict[str, str], unit: str) -> Drawn:
    figure, axes = axes_of(310, 46, 42, 20)
    titles: list[str] = []
    points = [(hours, cell.score.mean, cell.row) for cell, hours in priced if cell.score]
    cells = {cell.row: cell for cell, _ in priced}
    points.sort(key=lambda point: (point[0], -point[1], point[2]))
    front: list[tuple[float, float, str]] = []
    for point in points:
        if not front or point[1] > front[-1][1]:
            front.append(point)
    axes.plot([p[0] for p in front], [p[1] for p in front], color=HUES[0], lw=1,
              drawstyle="steps-post", alpha=0.7)  # fmt: skip
    for point in points:
        hours, score, method = point
        text = f"{names[method]}: {score:.2f} in {hours:.2g} {unit}"
        look = _dot(cells[method], HUES[0] if point in front else SOFT)
        axes.plot(hours, score, "o", ms=6, gid=token(titles, text), **look)
    if points[0][0] > 0 and points[-1][0] > 4 * points[0][0]:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.margins(0.08, 0.12)
    axes.grid()
    axes.tick_params(length=0, labelcolor=SOFT)
    _name(axes, [p for p in points if p in front or p[2] in BASELINES], names)
    task = priced[0][0].task
    axes.set_xlabel(f"{unit} a run; {task.word} at the {task.place}, %")
    note = "Right is dearer, up is better. Stepped line: methods that no cheaper method beats."
    note += " Hollow: one seed." if any(len(cell.records) == 1 for cell, _ in priced) else ""
    return f"Accuracy against cost ({unit})", note, figure, titles


def _name(axes: Axes, points: Sequence[tuple[float, float, str]], names: dict[str, str]) -> None:
    """Write names beside their points, the best first, where no name is yet."""
    taken: list[tuple[float, float, float]] = []  # left, right and height, in pixels
    for hours, score, method in sorted(points, key=lambda point: -point[1]):
        x, y = axes.transData.transform((hours, score))
        word = _short(names[method])
        length = LETTER * len(word)
        side = "left" if x + length + 8 < WIDTH else "right"
        start = x + 8 if side == "left" else x - 8 - length
        if any(start < r and left < start + length and abs(y - h) < 14 for left, r, h in taken):
            continue
        taken.append((start, start + length, y))
        offset = (7 if side == "left" else -7, 5)
        axes.annotate(word, (hours, score), offset, textcoords="offset points", ha=side)


def _curves_of(cell: Cell) -> list[list[float]]:
    """Return the test score by row, for every seed that has all epochs."""
    lines = [record.curve[record.task.headline] for record in cell.records if record.curve]
    longest = max((len(line) for line in lines), default=0)
    return [line for line in lines if len(line) == longest > 0]


def _places(cell: Cell) -> list[float]:
    """Return the epochs or steps of the longest curve."""
    curves = [record.curve for record in cell.records if record.curve]
    longest = max(curves, key=lambda curve: len(next(iter(curve.values()))))
    return longest.get("step") or [1 + i for i in range(len(next(iter(longest.values()))))]


def _step(epochs: int) -> int:
    return -(-epochs // POINTS)


def _sampled(epochs: int) -> list[int]:
    """Return the epochs (from 0) that are drawn, including the last."""
    step = _step(epochs)
    return list(range((epochs - 1) % step, epochs, step))


def _apart(axes: Axes, ends: dict[int, float], gap: float) -> dict[int, float]:
    """Return heights (shares of the axes) near the ends of lines, at least `gap` pixels apart."""
    low, high = axes.get_ylim()
    gap /= axes.get_window_extent().height
    order = sorted(ends, key=lambda place: ends[place])
    heights = [(ends[place] - low) / (high - low) for place in order]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    top = 1.0
    for i in reversed(range(len(heights))):
        heights[i] = top = min(heights[i], top)
        top -= gap
    return dict(zip(order, heights, strict=True))


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"
