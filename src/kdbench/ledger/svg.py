"""Drawings for the results page: SVG with the page's colours and fonts."""

import html
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

WIDTH = 430  # of a drawing, in the units of its SVG, which are pixels at its natural size

# Placeholders of the page's colours for matplotlib; `tidy` replaces them by the page's variables.
INK, SOFT, GRID, PAPER = (f"#0000f{i}" for i in range(4))
HUES = [f"#0000e{i}" for i in range(7)]  # more could not be told apart
VARIABLES = {INK: "ink", SOFT: "soft", GRID: "rule", PAPER: "paper"}
VARIABLES |= {hue: f"hue{i}" for i, hue in enumerate(HUES)}


class Palette(NamedTuple):
    """What a drawing is drawn in."""

    ink: str
    soft: str
    grid: str
    paper: str
    hues: tuple[str, ...]


ON_PAGE = Palette(INK, SOFT, GRID, PAPER, tuple(HUES))


def sheet() -> str:
    """Read the page's style sheet."""
    return (files("kdbench.ledger") / "page.css").read_text(encoding="utf-8")


def light() -> Palette:
    """Return the colours of the page in light mode."""
    found = dict(re.findall(r"--(\w+): (#\w+)", sheet().partition("@media")[0]))
    ink, soft, grid, paper, *hues = (found[name] for name in VARIABLES.values())
    return Palette(ink, soft, grid, paper, tuple(hues))


def settings(palette: Palette) -> Any:  # matplotlib's annotation spells every key out
    """Return matplotlib's settings for a drawing in these colours."""
    return {
        "svg.fonttype": "none",
        "font.family": "DejaVu Sans",  # matplotlib's own, with the same widths on every machine
        "font.size": 12,
        "text.color": palette.ink,
        "text.parse_math": False,
        "axes.edgecolor": palette.grid,
        "axes.facecolor": "none",
        "axes.labelcolor": palette.soft,
        "axes.linewidth": 1,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.useoffset": False,
        "axes.axisbelow": True,
        "grid.color": palette.grid,
        "grid.linewidth": 0.7,
        "xtick.color": palette.grid,
        "ytick.color": palette.grid,
        "xtick.labelcolor": palette.soft,
        "ytick.labelcolor": palette.ink,
        "figure.facecolor": "none",
        "lines.solid_capstyle": "round",
    }


@contextmanager
def style(palette: Palette = ON_PAGE) -> Iterator[None]:
    """Use matplotlib's defaults and these colours, whatever the user has configured."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(settings(palette))
        # The reader's fonts draw the letters; matplotlib's only measure them.
        warnings.filterwarnings("ignore", message="Glyph ")
        yield


def axes_of(height: float, left: float, bottom: float, right: float = 12) -> tuple[Figure, Axes]:
    """Return a drawing of `height`, with axes at `left`, `bottom` and `right` from its edges."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    FigureCanvasSVG(figure)
    inner = (WIDTH - left - right) / WIDTH, (height - bottom - 8) / height
    axes = figure.add_axes((left / WIDTH, bottom / height, *inner))
    for background in (figure.patch, axes.patch):  # the page's shows
        background.set_visible(False)
    return figure, axes


def token(titles: list[str], text: str) -> str:
    """Return an id that `tidy` turns into a title, the text shown under the pointer."""
    titles.append(text)
    return f"mark-{len(titles) - 1}-"


def tidy(figure: Figure, titles: Sequence[str], label: str, prefix: str) -> str:
    """Return a figure as a small SVG element, with the page's colours and unique ids.

    Args:
        figure: drawn under `style`.
        titles: the texts of its marks, see `token`.
        label: the drawing's name for readers who cannot see it.
        prefix: the prefix of every id in it.
    """
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "kdbench"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    text = re.sub(r"^.*?<svg[^>]*>|<!--.*?-->|<style.*?</style>", "", file.getvalue(), flags=re.S)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))

    def tag(match: re.Match[str]) -> str:
        """Rewrite one tag; text between tags is kept."""
        text = match[0]
        mark = re.search(r' id="mark-(\d+)-"', text)
        text = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' * (m[1] in used), text)
        text = re.sub(r'(?:xlink:)?(href="|url\()#', rf"\1#{prefix}", text)
        text = re.sub(r"font-family:[^;\"]*;? ?|font-size: 12px;? ?", "", text)
        text = re.sub(r"#0000[ef]\d", lambda m: f"var(--{VARIABLES[m[0]]})", text)
        text = re.sub(r' transform="rotate\(-0[^"]*"', "", text)
        text = re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), text)
        text = re.sub(r"\s+", " ", text)
        return f"{text}<title>{html.escape(titles[int(mark[1])])}</title>" if mark else text

    text = re.sub(r"<[^>]+>", tag, text)
    text = re.sub(r">\s*\n\s*<", "><", text)
    text = re.sub(r"<defs></defs>|<g></g>", "", text)
    words = f'role="img" aria-label="{html.escape(label)}"'
    return (
        f'<svg viewBox="0 0 {WIDTH} {round(figure.get_figheight() * 72)}" {words}>{text.strip()}\n'
    )


def alone(svg: str) -> str:
    """Make a file of an element of `tidy`; its colours follow the viewer's light or dark mode."""
    rules = re.findall(r"(@media \(prefers[^{]*\{\s*)?:root \{(.*?)\}", sheet(), re.DOTALL)
    colours = [f"{media}svg {{{body}}}{'}' if media else ''}" for media, body in rules]
    text = "svg { background: var(--paper); font: 12px system-ui, sans-serif; }"
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head, rest = svg.split(">", 1)
    styled = f"<style>{' '.join([*colours, text])}</style>"
    return f"{head} {names}>{' '.join(styled.split())}{rest}"


def png(figure: Figure, palette: Palette) -> bytes:
    """Save a figure drawn under `style(palette)` as PNG, at 144 dots an inch."""
    figure.patch.set(visible=True, facecolor=palette.paper)
    file = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(
        file, format="png", dpi=144, facecolor=palette.paper, metadata={"Software": None}
    )
    return file.getvalue()
