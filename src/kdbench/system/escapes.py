"""Text of others in a medium where some characters do something: one function for each medium.

Names, errors and paths come from records, folders and data sets that anybody may have made.
"""

import html
import re
import unicodedata

from kdbench.schema.secrets import masked

FORMULA = ("=", "+", "-", "@", "−")  # how a spreadsheet knows a formula, in any width
# What Markdown obeys wherever it stands, and what only in some places: a tag or an entity, a
# word's own underscores, an address that becomes a link, a line's first character.
_MARKDOWN = re.compile(
    r"[\\`*\[\]|~$]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])"
    r"|(?<=:)/(?=/)|(?<=www)\.|@(?=\w)|^\s*[#>+-](?=\s)|^#",
    re.IGNORECASE,
)
_LATEX = str.maketrans(
    {
        **{character: "\\" + character for character in "%&_#{}$"},
        # After a row's end these would be read as its arguments.
        **{character: "{" + character + "}" for character in "[]*"},
        "\\": r"\textbackslash{}",
        "^": r"\^{}",
        "~": r"\~{}",
        "±": r"$\pm$",
        "≥": r"$\geq$",
        "→": r"$\to$",
        "<": "$<$",
        ">": "$>$",
        "†": r"$^\dagger$",
    }
)


def for_terminal(text: str) -> str:
    """Text without secrets and without what steers a terminal; lines stay lines."""
    return "\n".join(printable(part) for part in masked(text).split("\n"))


def one_line(text: str) -> str:
    """Text for a terminal, on one line."""
    return for_terminal(" ".join(text.split()))


def printable(text: str) -> str:
    """Text on one line, with question marks for what cannot be printed."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def as_markdown(text: str) -> str:
    """Text as Markdown that shows it, also in a table."""
    return _MARKDOWN.sub(lambda found: _backslash(found[0]), printable(text))


def _backslash(found: str) -> str:
    return f"{found[:-1]}\\{found[-1]}"


def as_latex(text: str) -> str:
    """Text as LaTeX that shows it, also at the beginning of a table's row or in a comment."""
    return printable(text).translate(_LATEX)


def as_html(text: str) -> str:
    """Text as HTML that shows it, also as an attribute's value; lines stay lines."""
    return html.escape("\n".join(printable(line) for line in text.split("\n")))


def as_csv(text: str) -> str:
    """Text that no program takes for a formula, as spreadsheets do one that starts so."""
    start = unicodedata.normalize("NFKC", text).lstrip()[:1]
    shown = printable(text)
    return f"'{shown}" if start in FORMULA and start else shown
