"""Sending of finished runs to Weights & Biases under their own ids, from local files alone."""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kdbench.config.arguments import tell
from kdbench.errors import KdbenchError
from kdbench.ledger.cell_numbers import numbers
from kdbench.ledger.ledger import Ledger, open_ledger
from kdbench.ledger.published import usual
from kdbench.records.contents import ClassifierRecord, DetectorRecord, Done, Record
from kdbench.records.identity import Identity
from kdbench.records.record import RECORD_FILE, checksum, read_record, record_files
from kdbench.system.files import read_small, write_atomically
from kdbench.tracking.run_logger import METRICS_FILE
from kdbench.tracking.wandb_mirror import Mirror, Target, UnreachableError, describe, log_table
from kdbench.tracking.wandb_names import safe

CONFIG_FILE = "config.json"
STATE_FILE = "state.json"
LEDGER = "ledger"  # the run that holds the table of cells
STUCK = 5  # refused runs, with one reason and none accepted before, after which sending stops


class State:
    """The versions of runs that a target has: the checksums of the records that were sent."""

    def __init__(self, target: Target) -> None:
        self._path = target.folder / STATE_FILE
        self._key = f"{target.mode} {target.entity or ''}/{target.project}"
        try:
            sent = json.loads(read_small(self._path))
        except (
            OSError,
            ValueError,
            RecursionError,
        ):  # without it, all is sent again to the same ids
            sent = None
        self._sent: dict[str, Any] = sent if isinstance(sent, dict) else {}
        if not isinstance(self._sent.get(self._key), dict):
            self._sent[self._key] = {}

    def has(self, name: str, version: str) -> bool:
        """Return whether this version was sent."""
        return self._sent[self._key].get(name) == version

    def keep(self, name: str, version: str) -> None:
        """Remember that this version was sent."""
        self._sent[self._key][name] = version
        write_atomically(self._path, (json.dumps(self._sent, indent=1) + "\n").encode())


def sync(
    paths: Sequence[Path], target: Target, only: str | None = None
) -> tuple[int, int, list[str]]:
    """Send the runs at and below `paths`, then the table of their cells.

    A run that W&B refuses does not hold up the others.

    Args:
        paths: folders of runs or of records, or records.
        target: the W&B project.
        only: the status of the runs to send; None: all.

    Returns:
        The number of runs sent, of runs that the target has already, and a line for each run that
        was not sent.

    Raises:
        KdbenchError: a path does not exist, or W&B takes none of the runs.
    """
    target.folder.mkdir(parents=True, exist_ok=True)
    state = State(target)
    sent = known = 0
    problems, refused = [], []
    for name, path in by_run(paths).items():
        try:
            record = read_record(path)
            if only not in (None, record.status):
                continue
            if state.has(name, record.checksum):
                known += 1
                continue
            send(record, path, target)
            state.keep(name, record.checksum)
            sent += 1
        except UnreachableError as error:
            refused.append(error)
            problems.append(f"{path} was not sent: {error}")
            if not sent and len(refused) == STUCK and len(set(map(str, refused))) == 1:
                raise
        except KdbenchError as error:
            problems.append(str(error))
        except Exception as error:  # W&B raises many types
            problems.append(
                f"{path} was not sent ({describe(error)}): the same command tries again"
            )
    if refused and not sent and len(set(map(str, refused))) == 1 and len(refused) == len(problems):
        raise refused[0]
    problems += send_cells(paths, target, state, problems)
    return sent, known, problems


def send_cells(
    paths: Sequence[Path], target: Target, state: State, told: Sequence[str]
) -> list[str]:
    """Send the table of cells; runs that it leaves out are a warning only, since they were sent.

    Args:
        told: lines that were printed already.

    Returns:
        A line that says why it was not sent, if so.
    """
    ledger = open_ledger(paths, usual())
    for line in ledger.problems:
        if line not in told:
            tell(f"warning: {line}")
    try:
        send_ledger(ledger, target, state)
    except UnreachableError as error:
        return [f"the table of cells was not sent: {error}"]
    return []


def by_run(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the record of each run, preferably that in its folder, which holds more."""
    found: dict[str, Path] = {}
    for path in record_files(paths):
        name = path.parent.name if path.name == RECORD_FILE else path.stem
        if name not in found or path.name == RECORD_FILE:
            found[name] = path
    return found


def send(record: Record, path: Path, target: Target) -> None:
    """Replay one run.

    Raises:
        KdbenchError: its files are damaged.
        Exception: W&B raises many types.
    """
    identity = Identity(record.cell, record.hash, record.seed)
    folder = path.parent if path.name == RECORD_FILE else None
    rows = history(record, folder)
    checkpoints = [] if folder is None else read_checkpoints(folder)
    forget(identity.run_id, target)
    mirror = Mirror(target, identity, record.config, live=False)
    try:
        for row in rows:
            mirror.epoch(row)
        mirror.record(record, folder, checkpoints)
    finally:
        mirror.finish(int(not isinstance(record, Done)))


def forget(run_id: str, target: Target) -> None:
    """Remove an earlier call's files of a run, so that only its last version can be sent."""
    written = re.compile(rf"offline-run-\d+_\d+-{re.escape(safe(run_id))}")
    folder = target.folder / "wandb"
    for old in list(folder.iterdir()) if folder.is_dir() else []:
        if written.fullmatch(old.name) and old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)


def history(record: Record, folder: Path | None) -> list[dict[str, float]]:
    """Return the rows of every epoch: the run's own, or the shorter ones of its record.

    Raises:
        KdbenchError: the file is torn, or is not the record's.
    """
    path = None if folder is None else folder / METRICS_FILE
    if path is None or not path.is_file():
        curve = (record.curve if isinstance(record, Done) else None) or {}
        values = zip(*curve.values(), strict=True)
        return [  # a detector's has a line of steps
            {**({} if "step" in curve else {"epoch": epoch}), **dict(zip(curve, row, strict=True))}
            for epoch, row in enumerate(values, start=1)
        ]
    try:
        content = read_small(path)
        rows = [json.loads(text) for text in content.decode().splitlines()]
        whole = counted(rows, record)
        whole &= all(isinstance(value, int | float) for row in rows for value in row.values())
        if isinstance(record, Done):
            # Older records have none.
            whole &= record.metrics_sha256 in (None, hashlib.sha256(content).hexdigest())
            whole &= rows[-1][record.task.headline] == record.headline
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        whole = False
    if not whole:
        raise KdbenchError(
            f"{path} is torn or not of this run's record: remove it to send the record's own curve"
        )
    return rows


def counted(rows: Sequence[dict[str, float]], record: Record) -> bool:
    """Return whether rows are consecutive to the record's end, by epoch or by a detector's step."""
    if record.detects:
        steps = [row["step"] for row in rows]
        ended = not isinstance(record, DetectorRecord) or steps[-1] == record.steps
        return steps == sorted(set(steps)) and ended
    whole = [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    return whole and (not isinstance(record, ClassifierRecord) or len(rows) == record.epochs)


def read_checkpoints(folder: Path) -> list[str]:
    """Read the paths of a run's teachers' weights from its configuration.

    Raises:
        KdbenchError: it is damaged.
    """
    try:
        config = json.loads(read_small(folder / CONFIG_FILE))
        checkpoints = [node["checkpoint"] for node in config["teacher"].values()]
        whole = all(isinstance(name, str) for name in checkpoints)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise KdbenchError(
            f"{folder / CONFIG_FILE} is missing or torn: the run's command writes it again"
        )
    return checkpoints


def unfinished(paths: Iterable[Path]) -> list[Path]:
    """Return the folders of runs that have no record yet."""
    configs = {c for p in paths for c in (*p.glob(CONFIG_FILE), *p.glob(f"*/{CONFIG_FILE}"))}
    return sorted(c.parent for c in configs if not (c.parent / RECORD_FILE).is_file())


def send_ledger(ledger: Ledger, target: Target, state: State) -> None:
    """Send the table of the cells that were run, if it has changed.

    Raises:
        UnreachableError: W&B cannot be reached.
    """
    cells = [cell for cell in ledger.cells if cell.records]
    rows = [numbers(cell) for cell in cells]
    version = checksum({"rows": rows})
    if rows and not state.has(LEDGER, version):
        forget(LEDGER, target)
        log_table(target, LEDGER, rows, Counter(cell.verdict.value for cell in cells))
        state.keep(LEDGER, version)
