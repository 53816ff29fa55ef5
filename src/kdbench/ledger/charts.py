"""The charts of the results page."""

from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from kdbench.ledger.cell import Cell
from kdbench.ledger.cells import BASELINES, cost
from kdbench.ledger.row_charts import LETTER, Drawn, dot, gains, scores, seeds, short
from kdbench.ledger.svg import GRID, HUES, SOFT, WIDTH, axes_of, style, tidy, token

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
        drawings = gains, scores, seeds, _curves
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
        axes.text(1.02, y, short(names[shown[place]]), color=HUES[place], va="center",
                  transform=axes.transAxes)  # fmt: skip
    note = "Lines: mean over seeds. Bands: lowest to highest seed."
    note += f" One epoch in {step}, and the last." if (step := _step(epochs)) > 1 else ""
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
        look = dot(cells[method], HUES[0] if point in front else SOFT)
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
        word = short(names[method])
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
