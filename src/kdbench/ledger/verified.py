"""Records that others have sent: who computed them, and what their weights scored here."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from kdbench.errors import ConfigError, KdbenchError
from kdbench.records.contents import ClassifierRecord, Record
from kdbench.records.record import read_checked, read_record, write_checked
from kdbench.schema.check import check_plain, convert
from kdbench.system.files import write_atomically

RUNS, VERIFIED = "runs", "verified"  # folders of results/


@dataclass(frozen=True)
class Verification:
    """What is known of a record that somebody else has sent."""

    run_id: str
    record: str  # the checksum of the record's content
    by: str  # who has computed the run, as they call themselves
    top1: float  # percent, of its weights, scored again
    images: int  # on which
    date: str  # of the verification, in UTC


class Verified(NamedTuple):
    """A record of somebody else that was accepted."""

    record: ClassifierRecord
    content: bytes  # of its file
    by: str  # who has computed the run
    top1: float  # percent, of its weights, scored again
    images: int  # on which


def accept(results: Path, found: Verified) -> Path:
    """Put a verified record into the ledger's folder; return its file.

    Raises:
        KdbenchError: another record of that name is there already.
    """
    record = found.record
    path = results / RUNS / f"{record.run_id}.json"
    if path.is_file() and read_record(path).checksum != record.checksum:
        raise KdbenchError(f"{path} is another record of the same run, and stays")
    date = datetime.now(UTC).date().isoformat()
    measured = round(found.top1, 4), found.images, date
    for folder in (RUNS, VERIFIED):
        (results / folder).mkdir(parents=True, exist_ok=True)
    write_atomically(path, found.content)
    verification = Verification(record.run_id, record.checksum, found.by, *measured)
    write_checked(asdict(verification), results / VERIFIED / path.name)
    return path


def read_verified(
    folder: Path, records: Iterable[Record]
) -> tuple[dict[str, Verification], list[str]]:
    """Read a folder of verifications; return those of these records by run, and a line for others.

    Args:
        folder: as `accept` fills it; it need not exist.
        records: those of the ledger.
    """
    checksums = {record.run_id: record.checksum for record in records}
    found: dict[str, Verification] = {}
    problems = []
    for path in sorted(folder.glob("*.json")):
        try:
            one = _read(path)
        except KdbenchError as error:
            problems.append(str(error))
            continue
        if checksums.get(one.run_id) == one.record:
            found[one.run_id] = one
        else:
            problems.append(f"{path} verifies another record of {one.run_id} than the ledger's")
    return found, problems


def _read(path: Path) -> Verification:
    content: Mapping[str, object] = read_checked(path)
    hints = Verification.__annotations__
    try:
        check_plain("", content)
        return Verification(**{key: convert(key, content[key], hints[key]) for key in hints})
    except (KeyError, ConfigError) as error:
        raise KdbenchError(
            f"{path} is not a verification ({error}): restore or remove it"
        ) from None
