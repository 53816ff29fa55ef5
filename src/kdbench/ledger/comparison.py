"""The difference between two methods' scores and its significance, in one line."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from kdbench.config.arguments import tell
from kdbench.errors import ConfigError, KdbenchError, nearest
from kdbench.ledger.cells import Key, apart, key_of, read_records
from kdbench.ledger.formats import signed
from kdbench.ledger.significance import LEVEL, Difference, paired, welch
from kdbench.records.contents import Done, FailedRecord, Record
from kdbench.records.record import RECORD_FILE

RUNS = (Path("results/runs"), Path("runs"))  # the defaults of --runs
SHOWN = 3  # comparisons in one error line


class Side(NamedTuple):
    """The finished runs of one configuration."""

    key: Key
    hash: str
    records: list[Done]
    failed: list[FailedRecord]

    @property
    def cell(self) -> str:
        """The name of its runs before seed and hash."""
        return self.records[0].cell

    @property
    def scores(self) -> dict[int, float]:
        """The headlines by seed, in percent."""
        return {record.seed: record.headline for record in self.records}


def compare(first: str, second: str, runs: Sequence[Path]) -> str:
    """Compare two sides in one line.

    Args:
        first: cell, method, or path of a run.
        second: the same for the baseline.
        runs: folders of runs or of records, where cells and methods are looked up; none: `RUNS`.

    Raises:
        ConfigError: a name fits no cell or several, or two cells cannot be compared.
        KdbenchError: there is no finished run to compare.
    """
    known = [] if is_path(first) and is_path(second) else sides(look_up(runs))
    found = [
        sides([Path(name)]) if is_path(name) else named(name, known) for name in (first, second)
    ]
    ours, baseline = choose((first, second), *found)
    for record in [*ours.failed, *baseline.failed]:
        tell(f"without {record.run_id}, it failed: {record.error}")
    return line(ours, baseline)


def is_path(name: str) -> bool:
    """Return whether a name means a run's folder or record: cells and methods have no slash."""
    spelt = "/" in name or "\\" in name or name.endswith(".json")
    return spelt or (Path(name) / RECORD_FILE).is_file()


def look_up(runs: Sequence[Path]) -> list[Path]:
    """Return the folders to search.

    Raises:
        KdbenchError: none was named, and none of the usual ones exists.
    """
    found = list(runs) or [path for path in RUNS if path.exists()]
    if not found:
        usual = " nor ".join(map(str, RUNS))
        raise KdbenchError(f"there is neither {usual} here: give --runs a folder of runs")
    return found


def sides(paths: Sequence[Path]) -> list[Side]:
    """Return every configuration with finished runs among `paths`; report damaged records.

    Raises:
        ConfigError: a path does not exist.
        KdbenchError: no run is finished.
    """
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path} does not exist: give a run's folder, a record, or --runs")
    records, problems = read_records(paths)
    for problem in problems:
        tell(problem)
    groups: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        groups[key_of(record)].append(record)
    found = []
    for key, members in sorted(groups.items()):
        done = [record for record in members if isinstance(record, Done)]
        if done:
            failed = [record for record in members if isinstance(record, FailedRecord)]
            found.append(Side(key, key.hash, done, failed))
    if not found:
        places = ", ".join(map(str, paths))
        raise KdbenchError(f"no finished run in {places}: train first, or mend what failed there")
    return found


def named(name: str, known: Sequence[Side]) -> list[Side]:
    """Return the sides that a method, a cell with or without hash, or a run's id can mean.

    Raises:
        ConfigError: no side has that name.
    """
    names = [(side.key.method, side.cell, f"{side.cell}-{side.hash}") for side in known]
    found = [side for side, own in zip(known, names, strict=True) if name in own]
    found += [
        side._replace(records=[record], failed=[])
        for side in known
        for record in side.records
        if name in (record.run_id, record.run_id.removesuffix(f"-{record.hash}"))
    ]
    if not found:
        raise ConfigError(f"no finished run of '{name}': {nearest(name, set().union(*names))}")
    return found


def choose(
    names: tuple[str, str], ours: Sequence[Side], baselines: Sequence[Side]
) -> tuple[Side, Side]:
    """Return the only two configurations that the names can mean.

    Raises:
        ConfigError: no two of them, or several pairs, can be compared.
    """
    pairs = [(one, other) for one in ours for other in baselines if not same(one, other)]
    fit = [pair for pair in pairs if not apart(pair[0].key, pair[1].key)]
    if len(fit) == 1:
        return fit[0]
    said = f"'{names[0]}' and '{names[1]}'"
    if fit:
        examples = " or ".join(" ".join(labels(pair, fit)) for pair in fit[:SHOWN])
        raise ConfigError(
            f"{said} can be {len(fit)} comparisons: name the cells, such as {examples}"
        )
    if not pairs:
        raise ConfigError(f"{said} are the same runs: name two cells")
    if len(pairs) == 1:
        one, other = pairs[0]
        raise ConfigError(
            f"{said} cannot be compared: different {', '.join(apart(one.key, other.key))}"
        )
    raise ConfigError(
        f"no {said} have data, teachers, student and protocol in common: name two cells"
    )


def same(one: Side, other: Side) -> bool:
    """Return whether two sides are one configuration."""
    return (one.key, one.hash) == (other.key, other.hash)


def labels(pair: Iterable[Side], among: Iterable[tuple[Side, Side]]) -> list[str]:
    """Name two sides by their cells, and by their hashes where a cell has several."""
    hashes: dict[str, set[str]] = defaultdict(set)
    for side in (side for sides in among for side in sides):
        hashes[side.cell].add(side.hash)
    return [f"{s.cell}-{s.hash}" if len(hashes[s.cell]) > 1 else s.cell for s in pair]


def line(ours: Side, baseline: Side) -> str:
    """Return the difference, its interval and p-value, and their meaning, in one line."""
    mine, base = ours.scores, baseline.scores
    found = paired(mine, base) or welch([*mine.values()], [*base.values()])
    names = [ours.key.method, baseline.key.method]
    if names[0] == names[1]:
        names = [f"{side.key.method} ({side.hash})" for side in (ours, baseline)]
    key = ours.key if ours.key.taught else baseline.key
    parts = [
        f"{' - '.join(names)} on {key.dataset} {key.teacher} -> {key.student} "
        f"({key.protocol}, {ours.records[0].task.place}): {signed(found.mean)} points"
    ]
    if found.low is not None and found.high is not None and found.p is not None:
        parts.append(f"95% interval {signed(found.low)} to {signed(found.high)}")
        parts.append("p < 0.001" if found.p < 0.001 else f"p = {found.p:.3g}")
    if found.paired:
        parts.append(f"n = {found.n} paired seeds" if found.n > 1 else "one seed")
    else:
        parts.append(f"n = {len(mine)} and {len(base)} seeds, none shared")
        if found.p is not None:
            parts.append("unpaired Welch test")
    return f"{', '.join(parts)}: {meaning(found)}"


def meaning(found: Difference) -> str:
    """Return a difference in a word; its p-value is that of one test, chosen beforehand."""
    if found.p is None:
        return "cannot tell"
    return "real" if found.p < LEVEL else "a tie"
