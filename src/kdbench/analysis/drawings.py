"""The kinds of figures that measures draw, in the ledger's hand."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdbench.ledger.svg import WIDTH, Palette, axes_of

DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  # hues repeat after seven
MARKS = "os^DvP*X"


class Panel(NamedTuple):
    """One map of several that share their colours."""

    title: str
    values: np.ndarray  # [rows, columns]
    rows: Sequence[str] = ()  # names, where they are few enough to be read
    columns: Sequence[str] = ()


def maps(
    palette: Palette, panels: Sequence[Panel], low: float, high: float, colours: str, label: str
) -> Figure:
    """Draw matrices side by side on one colour scale, `low` to `high`; `label` names its bar."""
    named = bool(panels[0].rows)
    across = min(2 if named else 3, len(panels))
    down = ceil(len(panels) / across)
    left, gap, top, bar = (62.0 if named else 8.0), 14.0 if not named else 62.0, 22.0, 52.0
    side = (WIDTH - left - gap * (across - 1) - 10) / across
    below = 44.0 if named else 6.0
    shape = panels[0].values.shape
    tall = side * min(1.0, shape[0] / shape[1])
    height = down * (tall + top + below) + bar
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    drawn = None
    for number, panel in enumerate(panels):
        row, column = divmod(number, across)
        x, y = left + column * (side + gap), height - (row + 1) * (tall + top + below) + below
        axes = figure.add_axes((x / WIDTH, y / height, side / WIDTH, tall / height))
        axes.set_title(panel.title, fontsize=11, pad=4)
        drawn = axes.imshow(panel.values, colours, vmin=low, vmax=high, interpolation="nearest",
                            aspect="auto")  # fmt: skip
        _name_sides(axes, panel)
    bar_axes = figure.add_axes((max(left, 24) / WIDTH, 34 / height, 0.5, 8 / height))
    assert drawn is not None
    figure.colorbar(drawn, cax=bar_axes, orientation="horizontal")
    bar_axes.tick_params(length=0, labelsize=10, labelcolor=palette.soft)
    bar_axes.set_xlabel(label, fontsize=11)
    return figure


def _name_sides(axes: Axes, panel: Panel) -> None:
    axes.tick_params(length=0, labelsize=10)
    axes.set_xticks(range(len(panel.columns)), list(panel.columns), rotation=30, ha="right")
    axes.set_yticks(range(len(panel.rows)), list(panel.rows))
    for spine in axes.spines.values():
        spine.set_visible(False)


class Line(NamedTuple):
    """Points that are joined, in order."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]  # None: a gap


def lines(
    palette: Palette,
    drawn: Sequence[Line],
    x_label: str,
    y_label: str,
    diagonal: bool = False,
    height: float = 310,
) -> Figure:
    """Draw lines over one pair of axes with a legend; `diagonal` is x = y, dashed."""
    rows = ceil(len(drawn) / 2)
    figure, axes = axes_of(height + 16 * rows, 52, 44 + 16 * rows)
    if diagonal:
        axes.plot((0, 1), (0, 1), color=palette.soft, lw=1, ls=(0, (4, 3)))
    for number, line in enumerate(drawn):
        hue = palette.hues[number % len(palette.hues)]
        dash = DASHES[number // len(palette.hues) % len(DASHES)]
        y = [np.nan if value is None else value for value in line.y]
        mark = MARKS[number % len(MARKS)]
        axes.plot(line.x, y, color=hue, lw=1.6, ls=dash, marker=mark, ms=4, mew=0, label=line.name)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="y")
    axes.tick_params(length=0, labelcolor=palette.soft)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    legend(figure, axes)
    return figure


def legend(figure: Figure, axes: Axes) -> None:
    """Draw the legend in two columns at the figure's foot."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="lower left", bbox_to_anchor=(0.02, 0), ncols=2, fontsize=11,
                  frameon=False, borderpad=0, labelspacing=0.25, handlelength=2)  # fmt: skip


def clouds(palette: Palette, panels: Mapping[str, np.ndarray], labels: np.ndarray) -> Figure:
    """Draw points [n, 2] of each panel side by side, a hue and a mark for each class [n]."""
    across = min(2, len(panels))
    down = ceil(len(panels) / across)
    side = (WIDTH - 24) / across
    classes = np.unique(labels)
    rows = ceil(len(classes) / 5)
    height = down * (side + 20) + 18 * rows + 8
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    axes: Axes | None = None
    for number, (title, points) in enumerate(panels.items()):
        row, column = divmod(number, across)
        x, y = 8 + column * (side + 8), height - (row + 1) * (side + 20)
        axes = figure.add_axes((x / WIDTH, y / height, side / WIDTH, side / height))
        axes.set_title(title, fontsize=11, pad=3)
        axes.set_xticks([])
        axes.set_yticks([])
        for place, label in enumerate(classes):
            hue, mark = palette.hues[place % len(palette.hues)], MARKS[place % len(MARKS)]
            mine = points[labels == label]
            axes.plot(mine[:, 0], mine[:, 1], mark, ms=3.2, mew=0, color=hue, alpha=0.8,
                      label=f"class {label}")  # fmt: skip
    assert axes is not None
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="lower left", bbox_to_anchor=(0.0, 0), ncols=5, fontsize=10,
                  frameon=False, borderpad=0, labelspacing=0.2, handletextpad=0.1)  # fmt: skip
    return figure
