"""results/published.csv is what docs/results.md says, and a bad row costs that row alone."""

import csv
from dataclasses import replace

import pytest

from kdbench.errors import KdbenchError
from kdbench.ledger.published import COLUMNS, OWN, Claim, Published, choose, claim, read_published
from support.commands import ROOT

FILE = ROOT / "results" / "published.csv"
GOOD = {
    "source": "DKD-paper",
    "dataset": "cifar100",
    "teacher": "resnet32x4",
    "student": "resnet8x4",
    "method": "DKD",
    "kdbench": "dkd",
    "metric": "top1",
    "score": "76.32",
    "score_std": "",
    "gain_over_kd": "",
    "top5": "",
    "epochs": "240",
    "seeds_or_trials": "5",
    "protocol": "best",
    "url": "https://arxiv.org/abs/2203.08679",
    "note": "",
}
ROW = Published(
    dataset="cifar100",
    teacher="resnet32x4",
    student="resnet8x4",
    method="dkd",
    label="DKD",
    metric="top1",
    score=76.32,
    gain=None,
    std=None,
    epochs=240,
    seeds=5,
    protocol="best",
    source="DKD-paper",
    url="https://arxiv.org/abs/2203.08679",
    note="",
)


def table(path, *rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_every_row_of_the_published_scores_is_sound():
    rows, problems = read_published(FILE)
    assert problems == []
    assert len(rows) > 1900
    names = {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}
    assert {row.method for row in rows} - {""} <= names
    assert set(OWN) <= {row.source for row in rows}
    assert set().union(*OWN.values()) <= names


def test_our_pairs_are_published_under_our_names():
    rows, _ = read_published(FILE)
    networks = {path.stem for path in (ROOT / "conf" / "student").glob("*.yaml")}
    common = [row for row in rows if row.source == "RepDistiller"]
    assert {row.student for row in common} | {row.teacher for row in common} <= networks | {"none"}
    pairs = {f"{row.teacher}_{row.student}" for row in common if row.teacher != "none"}
    files = {path.stem for path in (ROOT / "conf" / "pair").glob("*.yaml")} - {"none"}
    others = ("three_", "self_", "imagenet_")
    assert pairs == {name for name in files if not name.startswith(others)}


def test_no_row_repeats_another():
    rows, _ = read_published(FILE)
    assert len(set(rows)) == len(rows)


def test_a_row_is_read(tmp_path):
    assert read_published(table(tmp_path / "p.csv", GOOD)) == ([ROW], [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": " "}, "its source is missing"),
        ({"url": ""}, "its url is missing"),
        ({"score": ""}, "its score is missing"),
        ({"metric": "f1"}, "its metric is 'f1', not one of top1, ap"),
        ({"gain_over_kd": "much"}, "its gain_over_kd is much, not a number from -100 to 100"),
        ({"score": "7632"}, "its score is 7632, not a number from 0 to 100"),
        ({"score": "nan"}, "its score is nan"),
        ({"score_std": "-1"}, "its score_std is -1"),
        ({"top5": "high"}, "its top5 is high"),
        ({"epochs": "2e2"}, "its epochs is 2e2, not a whole number"),
        ({"seeds_or_trials": "0"}, "its seeds_or_trials is 0"),
        ({"protocol": "mean"}, "its protocol is 'mean', not one of last, best, unknown"),
        ({"student": ""}, "its student is missing"),
        ({"quoted": "no"}, "its quoted is 'no', not yes or nothing"),
        ({"note": "\x1b[2J"}, "its note holds characters that cannot be printed"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_left_out(tmp_path, change, words):
    path = table(tmp_path / "p.csv", {**GOOD, "method": "KD"}, {**GOOD, **change}, GOOD)
    rows, (problem,) = read_published(path)
    assert [row.label for row in rows] == ["KD", "DKD"]
    assert problem.startswith(f"{path}, line 3: left out, ")
    assert words in problem


def test_a_row_cut_short_is_left_out(tmp_path):
    path = table(tmp_path / "p.csv", GOOD)
    path.write_text(path.read_text() + "DKD-paper,cifar100,resnet32x4\n")
    rows, (problem,) = read_published(path)
    assert len(rows) == 1
    assert "line 3: left out, it has not 17 cells" in problem


def test_a_file_that_is_no_such_table_is_refused(tmp_path):
    (tmp_path / "p.csv").write_text("a,b\n1,2\n")
    with pytest.raises(KdbenchError, match="lacks the columns source, dataset"):
        read_published(tmp_path / "p.csv")
    with pytest.raises(KdbenchError, match="cannot be read"):
        read_published(tmp_path / "none.csv")


def test_a_method_s_own_number_comes_first_then_one_that_is_not_quoted():
    own = replace(ROW, source="mdistiller-DKD", score=76.3)
    quoted = replace(ROW, source="RepDistiller", quoted=True, score=76.2)
    rerun = replace(ROW, source="ND", score=75.44)
    single = replace(ROW, source="KD-Zoo", score=75.0)
    other = replace(ROW, method="kd", source="RepDistiller")
    assert choose([single, quoted, rerun, own, other], "dkd") == own
    assert choose([single, quoted, rerun, other], "dkd") == rerun
    assert choose([single, quoted], "dkd") == quoted
    assert choose([other], "dkd") is None


def test_a_claim_is_counted_from_the_same_source_s_kd():
    kd = replace(ROW, label="KD", method="kd", score=73.33, protocol="last")
    kd_best = replace(kd, score=73.60, protocol="best")
    elsewhere = replace(kd, source="RepDistiller", score=70.0)
    assert claim([ROW, elsewhere, kd], "dkd") == Claim(2.99, "DKD-paper")
    assert claim([ROW, kd, kd_best], "dkd") == Claim(2.72, "DKD-paper")
    assert claim([ROW, elsewhere], "dkd") is None
    alone = replace(ROW, source="abstract", score=None, gain=2.64)
    assert claim([alone], "dkd") == Claim(2.64, "abstract")
    assert choose([alone], "dkd") is None, "a gain is no score"
    listed = replace(ROW, source="RepDistiller", score=71.5)
    assert claim([ROW, listed, elsewhere], "dkd") == Claim(1.5, "RepDistiller")
