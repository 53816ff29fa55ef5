"""Cells of published tables, which the ledger shows before anyone has run them."""

from collections.abc import Iterable, Mapping, Sequence

from kdbench.config.recipes import named_pairs
from kdbench.ledger.cells import ALONE, Key
from kdbench.ledger.published import Published
from kdbench.records.protocol import protocol_of

# Epochs and batch size of published tables: CIFAR's recipe, conf/schedule/cifar100.yaml.
COMMON = {"epochs": 240, "batch_size": 64}


def published_keys(rows: Iterable[Published], groups: Mapping[Key, Sequence[object]]) -> set[Key]:
    """Cells of published tables that nobody has run: of our methods, on our pairs."""
    pairs = {(key.teacher, key.student) for key in groups} | named_pairs()
    pairs |= {(ALONE, student) for _, student in pairs}
    run = {key._replace(hash="") for key in groups}
    keys = {
        _beside(
            Key(row.dataset, row.teacher, row.student, row.method, _common_protocol(row.dataset)),
            groups,
        )
        for row in rows
        if row.method and row.epochs == COMMON["epochs"] and (row.teacher, row.student) in pairs
    }
    return keys - run


def _beside(key: Key, groups: Mapping[Key, Sequence[object]]) -> Key:
    """A published cell in the table that most runs of its pair, or else of its student, are in."""
    place = key.dataset, key.student, key.protocol
    near: dict[Key, tuple[bool, bool, int]] = {}
    for other, records in groups.items():
        if (other.dataset, other.student, other.protocol) == place:
            exact, _, count = near.get(other.pair, (other.teacher == key.teacher, False, 0))
            near[other.pair] = exact, other.teacher == ALONE, count + len(records)
    if not near:
        return key
    best = max(sorted(near), key=lambda pair: near[pair])
    return key._replace(data=best.data, taught=best.taught if near[best][0] else "")


def _common_protocol(dataset: str) -> str:
    return protocol_of({"dataset": {"name": dataset}, "schedule": COMMON})
