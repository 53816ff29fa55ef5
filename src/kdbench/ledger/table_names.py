"""The names of tables: of their files, and what tells two of one pair and protocol apart."""

import hashlib
import re
from collections.abc import Sequence

from kdbench.ledger.cells import ALONE, Key
from kdbench.records.identity import canonical


def file_name(pair: Key) -> str:
    """Return the name of a table's file without its ending; it need not be unique."""
    names = pair.student if pair.teacher == ALONE else f"{pair.teacher}_{pair.student}"
    # The protocol's own name begins with the data set's.
    protocol = pair.protocol.removeprefix(f"{pair.dataset}-")
    return re.sub(r"[^\w.+-]", "_", f"{pair.dataset}-{names}-{protocol}")


def digest(pair: Key) -> str:
    """Return 8 hex digits that are a table's own."""
    return hashlib.sha256(canonical(list(pair)).encode()).hexdigest()[:8]


def mark(pair: Key, alike: Sequence[Key]) -> str:
    """Return what tells a table apart from those `alike`, of the same pair and protocol."""
    words = []
    if len({key.data for key in alike}) > 1:
        words.append(f"data {pair.data[:8]}")
    if len({key.taught for key in alike}) > 1:
        words.append(f"teacher {'+'.join(one[:8] for one in pair.taught.split('+'))}")
    return ", ".join(words)
