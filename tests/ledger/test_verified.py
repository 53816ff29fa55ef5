"""Verifications of records that others have sent: what is not one is a line, and no mark."""

import pytest

from kdbench.ledger.verified import read_verified
from kdbench.records.reading import record_of
from support.records import make_record, write_content


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"by": None}, "by must be text"),
        ({"by": "a\x1b[2J"}, "by holds characters that cannot be printed"),
        ({"top1": "best"}, "top1 must be a number"),
        ("images", "'images'"),
    ],
)
def test_a_verification_of_wrong_fields_is_one_line(tmp_path, changes, words):
    """Its checksum is right: that shows that it is unchanged, not who wrote it."""
    record = record_of({**make_record(), "checksum": "c" * 64})
    content = {"run_id": record.run_id, "record": record.checksum, "by": "A Lab", "top1": 70.0}
    content |= {"images": 10000, "date": "2026-01-01"}
    path = tmp_path / f"{record.run_id}.json"
    write_content(content, path)
    found, problems = read_verified(tmp_path, [record])
    assert (found.keys(), problems) == ({record.run_id}, [])
    if isinstance(changes, str):
        del content[changes]
    else:
        content |= changes
    write_content(content, path)
    found, (line,) = read_verified(tmp_path, [record])
    assert found == {}
    assert line.startswith(f"{path} is not a verification ({words}")
    assert line.endswith("): restore or remove it")
