"""What a run that nobody has trained would cost, by what runs of its pair have cost."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from statistics import mean
from typing import NamedTuple

from kdbench.ledger.cells import HOUR
from kdbench.ledger.ledger import Table
from kdbench.ledger.precisions import precision
from kdbench.records.contents import Done


class Price(NamedTuple):
    """The cost of a run of a pair, from other runs of it."""

    hours: float
    of: str  # GPU or CPU
    by: str  # what it follows from


def price(tables: Iterable[Table], wanted: Table, length: int) -> Price | None:
    """Return the mean cost of a run of some length; None where no run of the pair says it.

    It is that of an epoch or step, times their number `length`, over the pair's runs on the machine
    and in the precision that most of them have.
    """
    pair = wanted.dataset, wanted.teacher, wanted.student
    kinds: dict[tuple[str, str, str], list[Done]] = defaultdict(list)
    for table in tables:
        if (table.dataset, table.teacher, table.student) == pair:
            for record in (record for cell in table.cells for record in cell.records):
                if (of := _device(record)) is not None:
                    kinds[of, record.hardware.label, precision(record)].append(record)
    if not kinds:
        return None
    of, machine, arithmetic = max(sorted(kinds), key=lambda kind: len(kinds[kind]))
    records = kinds[of, machine, arithmetic]
    lengths = "/".join(str(n) for n in sorted({_length(record) for record in records}))
    by = (
        f"{arithmetic}, {machine}, by {count(records, 'run')} of {lengths} {records[0].task.length}"
    )
    return Price(length * mean(_each(record) for record in records), of, by)


def count(things: Collection[object], noun: str) -> str:
    """Return a number of things in words."""
    return f"{len(things)} {noun}{'s' * (len(things) != 1)}"


def hours(amount: float, of: str) -> str:
    """Return a cost in hours, or in minutes where it is less than one."""
    return f"{amount:.1f} {of}-h" if amount >= 1 else f"{60 * amount:.1f} {of}-min"


def _device(record: Done) -> str | None:
    if record.cost.gpu_seconds is not None:
        return "GPU"
    return None if record.cost.cpu_seconds is None else "CPU"


def _length(record: Done) -> int:
    """Return a run's epochs or steps."""
    return int(record.config.schedule.settings[record.task.length])


def _each(record: Done) -> float:
    seconds = record.cost.gpu_seconds
    if seconds is None:
        seconds = record.cost.cpu_seconds or 0.0
    return seconds / _length(record) / HOUR
