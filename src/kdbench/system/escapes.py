"""Escaping of text from others: one function for each medium with special characters.

Names, errors and paths come from records, folders and data sets that anybody may have made.
"""

import html
import re
import unicodedata

from kdbench.schema.secrets import masked

FORMULA = ("=", "+", "-", "@", "−")  # signs with which a spreadsheet's formula begins, any width
# Characters that are special in Markdown everywhere, and those that are special only in a tag or an
# entity, in a word, in an address that becomes a link, or at the beginning of a line.
_MARKDOWN = re.compile(
    r"[\\`*\[\]|~$]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])"
    r"|(?<=:)/(?=/)|(?<=www)\.|@(?=\w)|^\s*[#>+-](?=\s)|^#",
    re.IGNORECASE,
)
_LATEX = str.maketrans(
    {
        **{character: "\\" + character for character in "%&_#{}$"},
        # After a row's end, LaTeX would read these as its arguments.
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
    """Return text without secrets and control sequences of terminals; line breaks stay."""
    return "\n".join(printable(part) for part in masked(text).split("\n"))


def one_line(text: str) -> str:
    """Return text for a terminal, on one line."""
    return for_terminal(" ".join(text.split()))


def printable(text: str) -> str:
    """Return text on one line, with question marks for characters that cannot be printed."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def as_markdown(text: str) -> str:
    """Return Markdown that shows the text literally, also in a table."""
    return _MARKDOWN.sub(lambda found: _backslash(found[0]), printable(text))


def _backslash(found: str) -> str:
    return f"{found[:-1]}\\{found[-1]}"


def as_latex(text: str) -> str:
    """Return LaTeX that shows the text literally, also at a table row's start or in a comment."""
    return printable(text).translate(_LATEX)


def as_html(text: str) -> str:
    """Return HTML that shows the text literally, also as an attribute's value; lines stay lines."""
    return html.escape("\n".join(printable(line) for line in text.split("\n")))


def as_csv(text: str) -> str:
    """Return text that no spreadsheet takes for a formula."""
    start = unicodedata.normalize("NFKC", text).lstrip()[:1]
    shown = printable(text)
    return f"'{shown}" if start in FORMULA and start else shown
