"""`results/README.md`: in words that follow from the tables, failures first."""

from pathlib import Path

from kdbench.ledger.findings import findings
from kdbench.ledger.ledger import open_ledger, tables
from kdbench.ledger.published import COLUMNS
from support.ledgers import KD, published, runs
from support.records import fail, make_record, write

TIES = "Ties: claimed gains that are not told from KD"
UNCLAIMED = "Gains that no source claims for the pair and the protocol"


def sections(text: str) -> dict[str, list[str]]:
    found = {}
    for part in text.split("\n## ")[1:]:
        title, _, lines = part.partition("\n\n")
        found[title] = lines.strip().splitlines()
    return found


def text_of(folder: Path, *records: dict) -> str:
    rows = [("A", "kd", "KD", 73.4, "last"), ("A", "dkd", "DKD", 76.3, "last")]
    rows += [("A", "at", "AT", 74.4, "last"), ("A", "dist", "DIST", 74.9, "last")]
    rows += [("A", "crd", "CRD", 75.5, "last")]
    path = published(folder / "published.csv", *rows)
    row = dict.fromkeys(COLUMNS, "") | {"source": "A", "dataset": "cifar100", "teacher": "none"}
    row |= {"student": "resnet32x4", "method": "CE", "kdbench": "ce", "metric": "top1"}
    row |= {"score": "79.9", "epochs": "240", "protocol": "last", "url": "https://example.org"}
    with path.open("a") as file:
        file.write(",".join(row.values()) + "\n")
    return findings(tables(open_ledger([write(folder / "runs", *records)], path)))


def test_failures_come_first_and_every_line_follows_from_a_cell(tmp_path):
    dist = [score + gain for score, gain in zip(KD, (0.1, -0.2, 0.15), strict=True)]
    records = [*runs("kd", KD), *runs("dkd", [k + 2.9 for k in KD]), *runs("dist", dist)]
    records += [*runs("at", [k - 1 for k in KD]), make_record("nst", 0, 70.0)]
    text = text_of(tmp_path, *records, fail(make_record("vid", 1)))
    found = sections(text)
    assert list(found) == [
        *("Not reproduced", "Runs that failed", "Teachers that score otherwise than published"),
        *(TIES, "Reproduced", UNCLAIMED, "No verdict yet", "What it cost"),
    ]
    assert "Of 5 cells with a published number, 4 have a verdict." in text
    (at,) = found["Not reproduced"]
    assert at.startswith(
        "- **at** on resnet32x4 -> resnet8x4, cifar100-240ep-b64-last, in fp32: -1.00 "
    )
    assert at.endswith("over KD here, +1.00 claimed (A)")
    assert found["Runs that failed"][0].endswith(": a loss is not finite: lower the learning rate")
    assert found["Teachers that score otherwise than published"] == [
        "- resnet32x4 (11111111): 79.42 here, 79.90 published (A): -0.48 points"
    ]
    assert found[TIES][0].startswith("- **dist** on ")
    kd, dkd = found["Reproduced"]
    assert kd.endswith("73.40 ± 0.20 (3) here, 73.40 (A) published")
    assert dkd.startswith("- **dkd** on ")
    assert found["No verdict yet"] == [
        "- resnet32x4 -> resnet8x4, cifar100-240ep-b64-last: one seed each of nst",
        "- not run: 1 cell of 1 table",
    ]
    assert found["What it cost"] == ["- AMD EPYC, 2 threads: 14 runs, 21.0 CPU-h"]


def test_gains_without_a_claim_are_told_ties_first(tmp_path):
    pkt = [score + gain for score, gain in zip(KD, (2.0, 2.1, 1.9), strict=True)]
    rkd = [score + gain for score, gain in zip(KD, (0.1, -0.2, 0.15), strict=True)]
    found = sections(text_of(tmp_path, *runs("kd", KD), *runs("pkt", pkt), *runs("rkd", rkd)))
    place = "resnet32x4 -> resnet8x4, cifar100-240ep-b64-last"
    tie, gain = found[UNCLAIMED]
    assert tie.startswith(f"- **rkd** on {place}: tie, +0.02 (")
    assert gain.startswith(f"- **pkt** on {place}: +2.00 (+1.75 to +2.25), p ")
    assert tie.endswith(" over kd")
    assert "pkt" not in "".join(found["No verdict yet"])


def test_what_is_empty_says_so(tmp_path):
    found = sections(text_of(tmp_path))
    assert found["Not reproduced"] == found["What it cost"] == ["Nothing."]
