"""The commands that train a table's runs, to be pasted into a shell."""

import re
import shlex
from collections.abc import Iterable

from kdbench.config.conf_files import conf_dir
from kdbench.ledger.cell import Cell
from kdbench.ledger.cells import ALONE
from kdbench.ledger.ledger import Table

SEEDS = "0,1,2"  # for a table without runs
SHARED = ("schedule.", "dataset.")  # the nodes beside the method's that a run may depart in
BARE = re.compile(r"[A-Za-z_][\w./+-]*", re.ASCII)  # text that Hydra takes without quotes


def commands(table: Table) -> str:
    """Return one command for the rows that follow conf, and one for each other row."""
    cells = [cell for cell in table.cells if cell.records] or list(table.cells)
    as_conf = [cell for cell in cells if not cell.departures]
    made = [_command(table, as_conf)] if as_conf else []
    return "\n\n".join([*made, *(_command(table, [cell]) for cell in cells if cell.departures)])


def filling(table: Table) -> str:
    """Return the command that trains the cells without runs, the most valuable first."""
    cells = [cell for cell in table.cells if not cell.records and not cell.failed]
    words = "hydra/launcher=cohort", "hydra/launcher=cohort hydra.launcher.order=value"
    return _command(table, cells).replace(*words)


def _command(table: Table, cells: list[Cell]) -> str:
    records = [record for cell in cells for record in cell.records]
    seeds = ",".join(str(seed) for seed in sorted({r.seed for r in records})) or SEEDS
    schedules = sorted({record.config.schedule.name for record in records})
    teachers = [] if table.teacher == ALONE else table.teacher.split("+")
    pair = f"{table.teacher}_{table.student}"
    words = ["kdbench-train", "-m", "hydra/launcher=cohort", f"dataset={_text(table.dataset)}"]
    if BARE.fullmatch(pair) and (conf_dir() / "pair" / f"{pair}.yaml").is_file():
        words.append(f"pair={pair}")
    else:
        names = [_text(name) for name in teachers]
        words.append(f"student={_text(table.student)}")
        if teachers:
            joined = ",".join(names)
            words.append(f"teacher={joined if len(names) == 1 else f'[{joined}]'}")
    if schedules not in ([], [table.dataset]):
        words.append(f"schedule={_values(schedules)}")
    lines = [_shell(words)]
    lines += [_shell([f"teacher.{name}.checkpoint=FILE"]) for name in teachers]
    named = {cell.recipe or cell.method: cell.method for cell in cells}
    words = [f"method={_values(sorted(named))}", f"seed={seeds}"]
    if len(named) == 1 and (own := [*named.values()]) != [*named]:
        words.append(f"method.name={_text(own[0])}")
    for cell in cells:
        for one in cell.departures:
            key = one.key if one.key.startswith(SHARED) else f"method.{one.key}"
            words.append(f"{'+' * (one.theirs is None)}{key}={_value(one.ours)}")
    return " \\\n    ".join([*lines, _shell(words)])


def _shell(words: Iterable[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)


def _values(texts: Iterable[str]) -> str:
    return ",".join(_text(text) for text in texts)


def _value(value: object) -> str:
    """Return a setting in Hydra's syntax."""
    if isinstance(value, dict):
        items = ",".join(f"{_text(key)}:{_value(item)}" for key, item in value.items())
        return f"{{{items}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return _text(value) if isinstance(value, str) else str(value)


def _text(text: str) -> str:
    """Return text in Hydra's syntax."""
    if BARE.fullmatch(text) and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    quoted = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{quoted}'"
