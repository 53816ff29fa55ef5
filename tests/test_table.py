"""Tables as people and programs get them, from hand-made records."""

import csv
import io

import pytest

from kdbench.ledger.formats import latex, markdown
from kdbench.ledger.ledger import open_ledger, tables
from support.ledgers import DKD, KD, published, runs
from support.records import fail, make_record, write


@pytest.fixture
def folder(tmp_path):
    """Two protocols, a failure, a tie, a reconstruction."""
    folder = write(tmp_path / "runs", *runs("kd", KD), *runs("dkd", DKD))
    write(folder, *runs("at", (73.3, 73.3, 73.7)), *runs("dynamickd", (74.0, 74.1, 74.6)))
    return write(folder, fail(make_record("rkd", 1)))


@pytest.fixture
def scores(tmp_path):
    rows = [("Table", "kd", "KD", "73.33", "last"), ("Table", "dkd", "DKD", "76.32", "best")]
    return published(tmp_path / "published.csv", *rows)


def fields(text: str, method: str) -> dict[str, str]:
    """The cells of a method's row by their column."""
    rows = [
        [part.strip() for part in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    (row,) = [row for row in rows if row[0] == method]
    return dict(zip(rows[0], row, strict=True))


def made(folder, scores=None):
    (table,) = [table for table in tables(open_ledger([folder], scores)) if table.run]
    return table


def test_a_row_says_everything(folder, scores):
    text = markdown(made(folder, scores))
    assert "**cifar100, resnet32x4 -> resnet8x4, protocol cifar100-240ep-b64-last**" in text
    assert fields(text, "dkd") == {
        "method": "dkd",
        "top-1 last epoch": "76.33 ± 0.21 (3)",
        "95% interval": "75.82 to 76.85",
        "best-last": "+0.30",
        "last 5": "76.28",
        "gain over KD": "+2.93 (+2.79 to +3.08), p < 0.001",
        "claimed gain": "+2.99",
        "published": "76.32 (Table, best epoch)",
        "gap": "+0.31",
        "verdict": "reproduced",
        "cost": "1.5 CPU-h",
        "hardware": "AMD EPYC, 2 threads",
    }


def test_a_tie_is_called_a_tie(folder, scores):
    assert (
        fields(markdown(made(folder, scores)), "at")["gain over KD"]
        == "tie, +0.03 (-0.25 to +0.32), p 0.67"
    )


def test_a_single_seed_has_no_interval(tmp_path):
    folder = write(tmp_path / "one", make_record("kd", 0, 73.0), make_record("dkd", 0, 74.0))
    row = fields(markdown(made(folder)), "dkd")
    assert (row["top-1 last epoch"], row["95% interval"]) == ("74.00 (1)", "")
    assert row["gain over KD"] == "+1.00"


def test_seeds_that_kd_lacks_are_not_in_the_gain(tmp_path):
    folder = write(tmp_path / "runs", *runs("kd", KD[:2]), *runs("dkd", DKD))
    assert fields(markdown(made(folder)), "dkd")["gain over KD"].endswith(", 2 shared")


def test_reconstructions_and_failures_are_footnotes(folder, scores):
    text = markdown(made(folder, scores))
    assert fields(text, "dynamickd†")["verdict"] == "no claim"
    assert fields(text, "rkd")["verdict"] == "not run, 1 failed"
    assert "- † settings that no source gives in full: reconstructed." in text
    assert "- failed: rkd, seed 1: a loss is not finite" in text


def test_without_published_scores_the_table_is_compact(folder):
    text = markdown(made(folder))
    assert list(fields(text, "dkd")) == [
        "method",
        "top-1 last epoch",
        "95% interval",
        "best-last",
        "gain over KD",
        "cost",
    ]
    assert "- hardware: AMD EPYC, 2 threads." in text
    assert max(len(line) for line in text.splitlines() if line.startswith("|")) <= 115


def test_a_gpu_s_hours_are_its_cost(tmp_path):
    record = make_record("kd", gpu_seconds=360.0)
    record["hardware"]["gpu"] = "NVIDIA H200"
    text = markdown(made(write(tmp_path / "gpu", record)))
    assert fields(text, "kd")["cost"] == "6.0 GPU-min"
    assert "- hardware: NVIDIA H200." in text


def test_latex_escapes_what_latex_would_read(folder, scores):
    text = latex(made(folder, scores))
    assert r"76.33 $\pm$ 0.21 (3)" in text
    assert r"dynamickd$^\dagger$ &" in text
    assert r"95\% interval" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in body} == {11}
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1


def test_csv_has_one_header_and_every_cell(command, folder, scores):
    write(folder, *runs("kd", KD, epochs=12))
    result = command("table", str(folder), "--format", "csv", "--published", str(scores))
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert [row["method"] for row in rows] == ["kd", "kd", "at", "dkd", "dynamickd", "rkd"]
    dkd = rows[3]
    assert float(dkd["score"]) == pytest.approx(76.333333)
    assert (dkd["seeds"], dkd["tie"], dkd["verdict"]) == ("0 1 2", "False", "reproduced")
    assert (dkd["published_source"], dkd["cost_hours"], dkd["cost_of"]) == ("Table", "1.5", "CPU")


def test_a_protocol_is_chosen_and_never_mixed(command, folder):
    write(folder, *runs("kd", KD, epochs=12))
    both = command("table", str(folder))
    assert both.code == 0
    assert both.out.count("| method") == 2
    (warning,) = both.err.splitlines()
    assert warning.startswith("kdbench: warning: runs of resnet8x4 on cifar100 follow 2 protocols")
    one = command("table", str(folder), "--protocol", "cifar100-12ep-b64-last")
    assert one.out.count("| method") == 1
    wrong = command("table", str(folder), "--protocol", "cifar100-12ep")
    assert wrong.code == 2
    assert "did you mean 'cifar100-12ep-b64-last'?" in wrong.err


def test_nothing_to_show_says_how_to_make_some(command, tmp_path):
    (tmp_path / "runs").mkdir()
    assert "no records: make some, for instance with kdbench-train" in command("table").error_line
    assert "nowhere does not exist" in command("table", "nowhere").error_line


def test_settings_that_are_not_conf_s_are_marked_and_explained(command, tmp_path):
    changed = make_record("kd", settings={"temperature": 2.0})
    renamed = make_record("dynamickd", 1, 71.0)
    renamed["config"]["method"]["name"] = "mine"
    faster = make_record("dkd")
    faster["config"]["schedule"]["lr"] = 0.1
    write(tmp_path / "runs", changed, renamed, faster)
    out = command("table").out
    assert fields(out, "kd*")["top-1 last epoch"] == "70.00 (1)"
    assert "\n- kd*: temperature 2.0 where conf/method/kd.yaml has 4.0.\n" in out
    assert fields(out, "mine†")["top-1 last epoch"] == "71.00 (1)"
    assert "- dkd*: schedule.lr 0.1 where conf/schedule/cifar100.yaml has 0.05.\n" in out


def test_a_table_says_what_its_teachers_score(folder, scores):
    table = made(folder, scores)
    note = "teacher's top-1, measured here: resnet32x4 (11111111): 79.42%."
    assert f"\n- {note}" in markdown(table)
    assert f"\n% {note}" in latex(table)


def test_the_baseline_is_chosen(command, folder):
    result = command("table", str(folder), "--baseline", "at")
    assert fields(result.out, "dkd")["gain over at"].startswith("+2.90 (")
    assert "gain over at: points over the same seeds" in result.out
    wrong = command("table", str(folder), "--baseline", "ak")
    assert (wrong.code, "no cell is called 'ak'" in wrong.error_line) == (2, True)


def test_a_damaged_record_leaves_the_rest(command, folder):
    path = next(folder.glob("*-at-s0-*"))
    path.write_text("{")
    result = command("table", str(folder))
    assert result.code == 0
    assert result.err == (
        f"kdbench: warning: {path} is not a record: restore it, or remove it and rerun\n"
    )
    assert fields(result.out, "at")["top-1 last epoch"] == "73.50 ± 0.28 (2)"
