"""The files of records: they are found, read and written here."""

import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdbench.errors import ConfigError, KdbenchError
from kdbench.records.contents import Record
from kdbench.records.identity import canonical
from kdbench.records.reading import record_of
from kdbench.system.files import read_small, write_atomically

RECORD_FILE = "record.json"
FORMAT = 2


def write_record(record: Record, path: Path) -> None:
    """Write a record with its content checksum, whole or not at all."""
    write_checked(record.spelt(), path)


def write_checked(content: Mapping[str, Any], path: Path) -> None:
    """Write JSON with a checksum over it, whole or not at all."""
    checked = {key: value for key, value in content.items() if key != "checksum"}
    checked["checksum"] = checksum(checked)
    write_atomically(path, (json.dumps(checked, indent=1) + "\n").encode())


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        KdbenchError: the file is torn, altered, of another format or no record.
    """
    content = read_checked(path)
    if content.get("format") != FORMAT:
        raise KdbenchError(
            f"{path} is a record of format {content.get('format')}, this version reads {FORMAT}: "
            "remove it and rerun, or use the version that wrote it"
        )
    try:
        return record_of(content)
    except ConfigError as error:
        raise KdbenchError(f"{path} is not a record ({error}): remove it and rerun") from None


def read_checked(path: Path) -> dict[str, Any]:
    """Read what `write_checked` wrote.

    Raises:
        KdbenchError: the file is torn or altered.
    """
    try:
        content: dict[str, Any] = json.loads(read_small(path))
        intact = content["checksum"] == checksum(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise KdbenchError(f"{path} is not a record: restore it, or remove it and rerun") from None
    if not intact:
        raise KdbenchError(f"{path} was altered: restore it, or remove it and rerun")
    return content


def checksum(content: Mapping[str, Any]) -> str:
    """Return the sha256 of a record's content."""
    content = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def record_files(paths: Iterable[Path]) -> list[Path]:
    """Find files of records among and below `paths`: run folders, folders of them or of records.

    Raises:
        KdbenchError: a path does not exist.
    """
    found: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise KdbenchError(f"{path} does not exist: give a folder of runs or records")
        if path.is_file():
            found.add(path)
        else:
            found.update(path.glob(RECORD_FILE), path.glob(f"*/{RECORD_FILE}"))
            found.update(p for p in path.glob("*-s*-*.json") if p.is_file())
    return sorted(found)


def find_records(paths: Iterable[Path]) -> list[Record]:
    """Read all records among and below `paths`.

    Raises:
        KdbenchError: a path does not exist, or a record is damaged.
    """
    return [read_record(path) for path in record_files(paths)]


def code_version() -> str | None:
    """Return the checkout's commit, with "+changes" if `src` or `conf` has any; None outside one.

    Uncommitted files count as changes, since one may be the run's method.
    """
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=all", "--", ":/src", ":/conf"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes else "")
