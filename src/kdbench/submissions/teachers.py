"""The weights that may have taught a run of somebody else's: those whose origin is known."""

from pathlib import Path

from kdbench.errors import KdbenchError
from kdbench.records.contents import ClassifierRecord
from kdbench.records.passport import KNOWN, SUFFIX, read_passport
from kdbench.records.record import read_record, record_files

WEIGHTS = Path("weights")  # in a checkout's root


def known_teachers(results: Path) -> dict[str, float | None]:
    """Return the sha256 of known weights, with their top-1 in percent where it is known.

    These are the files that kdbench has passports of, the students of the runs in `results`, and
    the teachers of those runs.
    """
    found: dict[str, float | None] = {}
    for folder in (KNOWN, WEIGHTS):
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            passport = read_passport(path)
            if passport.sha256 is not None:
                found[passport.sha256] = passport.top1
    files = record_files([results / "runs"]) if (results / "runs").is_dir() else []
    for path in files:
        try:
            record = read_record(path)
        except KdbenchError:  # the report says so
            continue
        if isinstance(record, ClassifierRecord):
            for teacher in record.teachers:
                found.setdefault(teacher.sha256, teacher.score)
            if record.student_sha256 is not None:
                found.setdefault(record.student_sha256, None)  # in the run's own arithmetic
    return found
