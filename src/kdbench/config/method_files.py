"""What a file of conf/method says of its method, in its head and beside its settings."""

import re
from typing import NamedTuple

HEAD = re.compile(r"kind: (.+); status: (.+)")  # the second line
SETTING = re.compile(r"( *)(\w+): ?([^#]*?)(?:  # (.*))?$")


class Setting(NamedTuple):
    """One line of a configuration file."""

    key: str
    value: str
    source: str


class Page(NamedTuple):
    """The contents of a method's configuration file."""

    title: str
    paper: str
    kind: str
    status: str
    notes: list[str]
    settings: list[Setting]


def read_page(text: str) -> Page:
    """Parse a file of conf/method.

    Raises:
        ValueError: the head comment has another form.
    """
    lines = text.splitlines()
    head = [line[2:] for line in lines if line.startswith("# ")]
    title, _, paper = lines[0].removeprefix("# ").partition(": ")
    found = HEAD.fullmatch(head[1])
    if found is None:
        raise ValueError(f"the second line must be '# kind: ...; status: ...', not {lines[1]!r}")
    first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    notes = [line.removeprefix("#").strip() for line in lines[2:first]]
    kind, status = found.groups()
    return Page(title, paper, kind, status, notes, _settings(lines[first:]))


def _settings(lines: list[str]) -> list[Setting]:
    settings: list[Setting] = []
    above: list[str] = []
    parent = ""
    for line in lines:
        if line.lstrip().startswith("#"):
            above.append(line.strip().removeprefix("#").strip())
            continue
        match = SETTING.fullmatch(line)
        if match is not None:
            indent, key, value, source = match.groups()
            parent = parent if indent else ""
            if key == "inner" and not value:
                parent = "inner."
            elif value and key not in ("name", "_target_", "inferred"):
                settings.append(Setting(parent + key, value, source or " ".join(above)))
        above = []
    return settings
