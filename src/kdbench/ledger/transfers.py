"""Transfer results of `kdbench-analyse what=transfer`: a table for each other data set.

A record is a linear classifier on one network's frozen features; they lie in folders transfer-DATA.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.errors import KdbenchError
from kdbench.ledger.formats import drawn, interval_text, score_text
from kdbench.ledger.significance import Estimate, estimate
from kdbench.records.record import read_checked
from kdbench.system.escapes import as_markdown

FOLDERS = "transfer-*"
Probe = Mapping[str, Any]


class Move(NamedTuple):
    """What probes of one table share."""

    source: str  # the data set that the networks were trained on
    target: str
    side: int  # of the images, pixels
    protocol: str
    data: str  # the target's sha256


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder of transfer records."""
    return path.is_dir() and path.match(FOLDERS)


def find_probes(paths: Iterable[Path]) -> dict[Move, list[Probe]]:
    """Read the transfer records in and right below `paths`, each network's once.

    Raises:
        KdbenchError: one is damaged, or is no such record.
    """
    found: dict[Move, dict[str, Probe]] = {}
    for path in paths:
        for folder in [path] if is_folder(path) else sorted(filter(is_folder, path.glob(FOLDERS))):
            for file in sorted(folder.glob("*.json")):
                record = read_checked(file)
                try:
                    to = record["to"]
                    named = record["from"]["name"], to["name"], int(to["side"])
                    move = Move(*named, str(record["protocol"]), str(to["sha256"]))
                    what = {"configuration": record["configuration"], "top1": record["top1"]}
                    over_seeds([what])
                    found.setdefault(move, {})[str(record["sha256"])] = what
                except (KeyError, TypeError, ValueError):
                    raise KdbenchError(f"{file} is no transfer record: restore it") from None
    return {move: [*probes.values()] for move, probes in sorted(found.items())}


def over_seeds(probes: Sequence[Probe]) -> dict[str, Estimate]:
    """Return the top-1 of each configuration over its seeds, in percent."""
    scores: dict[str, list[float]] = {}
    for probe in probes:
        scores.setdefault(str(probe["configuration"]), []).append(float(probe["top1"]))
    return {name: estimate(scores[name]) for name in sorted(scores)}


def markdown(move: Move, probes: Sequence[Probe]) -> str:
    """Return a table in Markdown, with its title and notes."""
    title = f"transfer from {as_markdown(move.source)} to {as_markdown(move.target)}"
    rows = [
        [as_markdown(name), score_text(one), interval_text(one)]
        for name, one in over_seeds(probes).items()
    ]
    heads = ["configuration", "top-1 of a linear classifier", "95% interval"]
    size = f"{move.side} x {move.side}"
    notes = [
        "top-1 in percent, on frozen features: mean ± sample standard deviation over (n) seeds.",
        f"images of {size} pixels, normalised as the network's own; {as_markdown(move.protocol)}.",
    ]
    return drawn(f"{title}, {size}", heads, rows, notes)
