"""Cells of published tables, which the ledger shows before they have runs."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from kdbench.config.conf_files import conf_dir
from kdbench.config.recipes import named_pairs
from kdbench.ledger.cells import ALONE, Key
from kdbench.ledger.published import Published
from kdbench.records.protocol import protocol_of
from kdbench.schema.node import Node

# Length and batch size of published tables: CIFAR's recipe, conf/schedule/cifar100.yaml; by data
# set where it is another one.
COMMON = {"epochs": 240, "batch_size": 64}
OTHERS = {"coco": {"steps": 180_000, "batch_size": 8}}
NAME = re.compile(r"[\w.+-]{1,200}", re.ASCII)  # of a file of conf/


def common(dataset: str) -> Mapping[str, int]:
    """Return length and batch size of a data set's published tables."""
    return OTHERS.get(dataset, COMMON)


def published_keys(rows: Iterable[Published], groups: Mapping[Key, Sequence[object]]) -> set[Key]:
    """Return cells of published tables without runs, for our methods on our pairs."""
    pairs = {(key.teacher, key.student) for key in groups} | named_pairs()
    pairs |= {(ALONE, student) for _, student in pairs}
    run = {key._replace(hash="") for key in groups}
    keys = {
        _beside(
            Key(row.dataset, row.teacher, row.student, row.method, _common_protocol(row.dataset)),
            groups,
        )
        for row in rows
        if row.method
        and row.epochs == common(row.dataset).get("epochs")
        and (row.dataset in OTHERS or (row.teacher, row.student) in pairs)
    }
    return keys - run


def swept_keys(keys: Iterable[Key], groups: Mapping[Key, Sequence[object]]) -> set[Key]:
    """Return cells without runs that the pairs' own files of experiments/ will fill."""
    run = {key._replace(hash="") for key in groups}
    pairs = {Key(key.dataset, key.teacher, key.student, "", key.protocol) for key in keys}
    return {_beside(cell, groups) for pair in pairs for cell in _swept(pair)} - run


@cache
def _swept(pair: Key) -> frozenset[Key]:
    """Return cells of the published protocol that a pair's file of experiments/ names."""
    path = conf_dir() / "experiments" / f"{pair.dataset}_{pair.teacher}_{pair.student}.yaml"
    known = NAME.fullmatch(path.name) and pair.protocol == _common_protocol(pair.dataset)
    text = path.read_text() if known and path.is_file() else ""
    methods = methods_in(text)
    files = {method: conf_dir() / "method" / f"{method}.yaml" for method in methods}
    labels = {name for name, file in files.items() if "# kind: label" in file.read_text()}
    return frozenset(
        pair._replace(method=name, teacher=ALONE if name in labels else pair.teacher)
        for name in methods
    )


def methods_in(text: str) -> list[str]:
    """Return the methods that a file of experiments/ lists, in its order."""
    found = re.search(r"method: >-\n((?: +\w[\w., -]*\n)+)", text)
    return re.findall(r"[\w.]+", found[1]) if found else []


def _beside(key: Key, groups: Mapping[Key, Sequence[object]]) -> Key:
    """Put a published cell into the table with most runs of its pair, or else of its student."""
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
    return protocol_of(Node("", {}, dataset), Node("", dict(common(dataset))))
