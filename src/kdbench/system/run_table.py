"""Scores of runs that train side by side as text: a table for a terminal, one line for a log."""

from collections.abc import Mapping, Sequence

GAP = "  "


def fitting(sizes: Mapping[str, int], drops: Sequence[str], width: int) -> list[str]:
    """Return the names of the parts that fit on a line of `width`, gaps included.

    Args:
        sizes: the parts' widths, in their order on the line.
        drops: the parts that may be left out, the first one first.
        width: of the line.
    """
    kept, left_out = list(sizes), list(drops)
    while sum(sizes[name] + len(GAP) for name in kept) - len(GAP) > width and left_out:
        kept.remove(left_out.pop(0))
    return kept


def status(parts: Mapping[str, str], drops: Sequence[str], width: int) -> str:
    """Return the parts that there are as one line of at most `width`; `drops` as in `fitting`."""
    there = {name: text for name, text in parts.items() if text}
    sizes = {name: len(text) for name, text in there.items()}
    kept = fitting(sizes, [name for name in drops if name in there], width)
    return GAP.join(there[name] for name in kept)[:width]


def table(
    titles: Sequence[str], runs: Sequence[Mapping[str, str]], drops: Sequence[str], width: int
) -> list[str]:
    """Return a line of titles and a line for each run, none wider than `width`.

    Args:
        titles: of the columns; the first column is on the left of its place, numbers on the right.
        runs: each run's texts by title; what one lacks is blank.
        drops: titles that a narrow terminal goes without, the first one first; where that is not
            enough, the first column is cut.
        width: of the terminal.
    """
    lines = [dict(zip(titles, titles, strict=True)), *runs]
    sizes = {title: max(len(line.get(title, "")) for line in lines) for title in titles}
    first, *others = fitting(sizes, drops, width)
    room = width - sum(len(GAP) + sizes[title] for title in others)
    sizes[first] = max(1, min(sizes[first], room))
    found = []
    for line in lines:
        name = line.get(first, "")[: sizes[first]].ljust(sizes[first])
        texts = [name, *(line.get(title, "").rjust(sizes[title]) for title in others)]
        found.append(GAP.join(texts)[:width].rstrip())
    return found


def log_line(parts: Mapping[str, str]) -> str:
    """Return the parts that there are as one line that `grep` finds and `cut` takes apart."""
    return " | ".join(text for text in parts.values() if text)


def clock(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def milliseconds(seconds: float) -> str:
    """Return the seconds of a step in milliseconds."""
    taken = 1000 * seconds
    return f"{taken:,.0f} ms/step" if taken >= 100 else f"{taken:.1f} ms/step"
