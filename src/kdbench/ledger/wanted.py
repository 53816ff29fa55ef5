"""The cells that the ledger wants most: what to train next, and what that costs."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from kdbench.config.conf_files import conf_dir
from kdbench.ledger.cells import BASELINES
from kdbench.ledger.claims import COMMON, methods_in
from kdbench.ledger.ledger import Table
from kdbench.ledger.prices import Price, price

CAMPAIGN = "campaign_cifar100"  # a file of experiments/
SEEDS = range(5)
SHOWN = 10


class Wanted(NamedTuple):
    """A cell that lacks runs."""

    method: str
    seeds: tuple[int, ...]
    why: str
    command: str
    cost: Price | None  # of all of these seeds


def headline(made: Sequence[Table]) -> Table | None:
    """Return the table of the campaign's pair under the published protocol, if it is there."""
    text = (conf_dir() / "experiments" / f"{CAMPAIGN}.yaml").read_text()
    found = re.search(r"override /pair: (\w+)", text)
    name = found[1] if found else ""
    epochs = f"-{COMMON['epochs']}ep-b{COMMON['batch_size']}-last"
    tables = [one for one in made if f"{one.teacher}_{one.student}" == name]
    return next((one for one in tables if one.protocol == one.dataset + epochs), None)


def most_wanted(made: Sequence[Table]) -> list[Wanted]:
    """Return the cells of the headline table that are wanted most, in the order of worth.

    The order is that of a campaign: the first seed of each headline method, CE and KD to five
    seeds, since every gain is measured against them, and then the other seeds.
    """
    table = headline(made)
    if table is None:
        return []
    text = (conf_dir() / "experiments" / f"{CAMPAIGN}.yaml").read_text()
    methods = methods_in(text)
    found = re.search(r"headline: (\d+)", text)
    first = methods[: int(found[1])] if found else methods
    have = {name: _seeds(table, name) for name in methods}
    stages: list[tuple[str, tuple[int, ...], str]] = []
    stages += [(name, (0,), "its first number") for name in first if not have[name]]
    for name in first:
        missing = tuple(seed for seed in SEEDS if seed not in have[name] and seed > 0)
        if name in BASELINES and missing:
            stages.append((name, missing, "every gain is measured against it"))
    for name in first:
        missing = tuple(seed for seed in SEEDS if seed not in have[name] and seed > 0)
        if name not in BASELINES and missing:
            stages.append((name, missing, "an interval and a verdict"))
    stages += [(name, (0,), "its first number") for name in methods if not have[name]]
    distinct = list(dict.fromkeys(stages))
    each = price(made, table, COMMON["epochs"])
    return [
        Wanted(name, seeds, why, _command(name, seeds), _times(each, len(seeds)))
        for name, seeds, why in distinct[:SHOWN]
    ]


def _seeds(table: Table, method: str) -> set[int]:
    cells = [cell for cell in table.cells if cell.method == method and not cell.departures]
    return {record.seed for cell in cells for record in cell.records}


def _command(method: str, seeds: Sequence[int]) -> str:
    numbers = ",".join(map(str, seeds))
    return f"kdbench-train +experiments={CAMPAIGN} method={method} seed={numbers}"


def _times(each: Price | None, count: int) -> Price | None:
    return None if each is None else each._replace(hours=count * each.hours)
