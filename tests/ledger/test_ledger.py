"""The ledger: cells from hand-made records, and one line for everything that cannot be used."""

import re
from pathlib import Path

import pytest

from kdbench.errors import ConfigError
from kdbench.ledger.formats import markdown
from kdbench.ledger.leaderboard import ranked
from kdbench.ledger.ledger import Ledger, open_ledger, tables
from kdbench.ledger.page import render
from kdbench.ledger.significance import Verdict
from support.commands import ROOT
from support.ledgers import CE, DKD, KD, published, runs
from support.records import PROTOCOL, fail, make_record, write, write_content


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    return published(
        tmp_path / "published.csv",
        ("Table", "ce", "CE", "72.50", "last"),
        ("Table", "kd", "KD", "73.33", "last"),
        ("Table", "dkd", "DKD", "76.32", "best"),
        ("Table", "at", "AT", "73.44", "last"),
        ("Table", "dist", "DIST", "76.31", "last"),
        ("Table", "", "FSP", "72.62", "last"),
    )


def cell(ledger: Ledger, method: str):
    (found,) = [c for c in ledger.cells if c.method == method and c.student == "resnet8x4"]
    return found


def test_a_cell_over_its_seeds(tmp_path, scores):
    folder = write(tmp_path / "runs", *runs("kd", KD), *runs("dkd", DKD))
    ledger = open_ledger([folder], scores)
    assert ledger.problems == ()
    dkd = cell(ledger, "dkd")
    assert (dkd.dataset, dkd.teacher, dkd.protocol) == ("cifar100", "resnet32x4", PROTOCOL)
    assert [record.seed for record in dkd.records] == [0, 1, 2]
    assert dkd.hash == dkd.records[0].hash
    assert dkd.score.mean == pytest.approx(76.3333, abs=1e-4)
    assert dkd.score.std == pytest.approx(0.2082, abs=1e-4)
    # Student's t for 2 degrees of freedom: 4.3027.
    assert dkd.score.high - dkd.score.mean == pytest.approx(4.3027 * 0.2082 / 3**0.5, abs=1e-3)
    assert dkd.best_on_test.mean == pytest.approx(dkd.score.mean + 0.3)
    assert dkd.last5.mean == pytest.approx(dkd.score.mean - 0.05)


def test_a_gain_is_paired_by_seed_and_judged_against_the_same_source_s(tmp_path, scores):
    folder = write(tmp_path / "runs", *runs("kd", KD), *runs("dkd", DKD))
    dkd = cell(open_ledger([folder], scores), "dkd")
    assert dkd.gain.mean == pytest.approx(2.9333, abs=1e-4)
    assert (dkd.gain.n, dkd.gain.paired) == (3, True)
    assert (dkd.claimed_gain, dkd.claim_source) == (2.99, "Table")
    assert dkd.verdict == Verdict.REPRODUCED
    # The source scores the best epoch, so the gap does too.
    assert dkd.gap == pytest.approx(76.6333 - 76.32, abs=1e-4)


@pytest.mark.parametrize(
    ("method", "scores_", "verdict"),
    [
        ("at", (73.3, 73.3, 73.7), Verdict.TIE),
        ("dist", (74.2, 74.4, 74.7), Verdict.NOT_REPRODUCED),
        ("dist", (76.3,), Verdict.TOO_FEW),
        ("cc", (73.0, 73.1, 73.2), Verdict.NO_CLAIM),
    ],
)
def test_verdicts_of_gains(tmp_path, scores, method, scores_, verdict):
    folder = write(tmp_path / "runs", *runs("kd", KD), *runs(method, scores_))
    assert cell(open_ledger([folder], scores), method).verdict == verdict


def test_without_kd_there_is_no_gain(tmp_path, scores):
    found = cell(open_ledger([write(tmp_path / "runs", *runs("dkd", DKD))], scores), "dkd")
    assert (found.gain, found.verdict) == (None, Verdict.TOO_FEW)


def test_baselines_are_judged_by_their_score(tmp_path, scores):
    folder = write(tmp_path / "runs", *runs("kd", KD), *runs("ce", CE, teacher="none"))
    ledger = open_ledger([folder], scores)
    assert cell(ledger, "kd").verdict == Verdict.REPRODUCED
    assert cell(ledger, "ce").verdict == Verdict.REPRODUCED
    far = write(tmp_path / "far", *runs("kd", (75.0, 75.1, 75.2)))
    assert cell(open_ledger([far], scores), "kd").verdict == Verdict.NOT_REPRODUCED


def test_p_values_are_adjusted_over_the_pair_s_methods_alone(tmp_path):
    noise, other = (73.5, 73.3, 73.9), {"student": "vgg8", "teacher": "vgg13"}
    one = write(tmp_path / "one", *runs("kd", KD), *runs("dkd", DKD))
    two = write(tmp_path / "two", *runs("kd", KD), *runs("dkd", DKD), *runs("at", noise))
    write(tmp_path / "two", *runs("kd", KD, **other), *runs("at", DKD, **other))
    single = cell(open_ledger([one], None), "dkd")
    assert single.gain_p == pytest.approx(single.gain.p)
    double = cell(open_ledger([two], None), "dkd")
    assert double.gain_p == pytest.approx(2 * single.gain.p)


def test_published_cells_that_nobody_ran_are_shown(tmp_path, scores):
    ledger = open_ledger([write(tmp_path / "runs", *runs("kd", KD))], scores)
    assert {c.method for c in ledger.cells} == {"ce", "kd", "dkd", "at", "dist"}
    dist = cell(ledger, "dist")
    assert (dist.verdict, dist.hash, dist.records, dist.score) == (Verdict.NOT_RUN, None, (), None)
    assert (dist.protocol, dist.published.score) == (PROTOCOL, 76.31)
    (table,) = tables(ledger)
    assert [c.method for c in table.cells] == ["ce", "kd", "at", "dist", "dkd"]


def test_a_pair_s_own_sweep_has_a_cell_for_each_of_its_methods(tmp_path, scores):
    text = (ROOT / "experiments" / "cifar100_resnet32x4_resnet8x4.yaml").read_text()
    named = re.findall(r"[\w.]+", text.split("method: >-")[1].split("seed:")[0])
    (table,) = tables(open_ledger([tmp_path], scores, swept=True))
    assert {cell.method for cell in table.cells} == set(named)
    assert {cell.method for cell in table.cells if cell.teacher == "none"} == {
        "ce",
        "label_smoothing",
        "tfkd_reg",
    }
    assert all(cell.verdict is Verdict.NOT_RUN for cell in table.cells)


def test_published_scores_stay_out_of_another_protocol(tmp_path, scores):
    folder = write(tmp_path / "runs", *runs("dkd", DKD, epochs=12))
    short = [c for c in open_ledger([folder], scores).cells if c.records]
    assert [(c.published, c.claimed_gain, c.verdict) for c in short] == [
        (None, None, Verdict.NO_CLAIM)
    ]


def test_protocols_are_never_mixed(tmp_path, scores):
    folder = write(tmp_path / "runs", *runs("kd", KD), *runs("dkd", DKD, epochs=12))
    ledger = open_ledger([folder], scores)
    (problem,) = ledger.problems
    assert "runs of resnet8x4 on cifar100 follow 2 protocols" in problem
    assert "cifar100-12ep-b64-last (3), cifar100-240ep-b64-last (3)" in problem
    assert [c.gain for c in ledger.cells if c.records] == [None, None]
    ran = [table for table in tables(ledger) if table.run]
    assert [table.protocol for table in ran] == ["cifar100-12ep-b64-last", PROTOCOL]


def in_bf16(*records: dict) -> list[dict]:
    """The same runs in bf16."""
    found = []
    for record in records:
        config = record["config"]
        config = {**config, "schedule": {**config["schedule"], "precision": "bf16"}}
        own = {"config": config, "hash": f"{record['hash'][:6]}bf"}
        own["run_id"] = record["run_id"].replace(record["hash"], own["hash"])
        found.append({**record, **own, "protocol": "cifar100-240ep-b64-bf16-last"})
    return found


@pytest.mark.parametrize(
    ("other", "shown"),
    [
        ((73.3, 73.2, 73.7), True),
        ((73.3, 73.2), False),  # two seeds show nothing
        ((74.3, 74.4, 74.8), False),  # a point better with every seed
        ((73.9, 73.4, 74.1), False),  # perhaps no real difference, and more than seeds make
    ],
)
def test_another_precision_stands_beside_fp32_where_paired_seeds_allow_it(
    tmp_path, scores, other, shown
):
    folder = write(tmp_path / "runs", *runs("kd", KD), *in_bf16(*runs("kd", other)))
    ledger = open_ledger([folder], scores)
    half, plain = (table for table in tables(ledger) if table.run)
    assert (plain.protocol, half.protocol) == (PROTOCOL, "cifar100-240ep-b64-bf16-last")
    rows = [one.row for one in plain.rows if one.records]
    assert rows == ["kd", *["kd (bf16)"] * shown]
    assert [one.row for one in half.rows if one.records] == ["kd"]
    text = markdown(plain)
    assert ("another precision than fp32" in text) == shown
    assert ("kd (bf16) +0.00 (" in text) == shown
    assert [row.rank for row in ranked(plain) if row.cell.records] == [1, *[None] * shown]
    assert ("kd (bf16)" in render(ledger)) == shown


def test_other_settings_are_no_other_precision(tmp_path, scores):
    hot = runs("kd", KD, settings={"temperature": 2.0})
    folder = write(tmp_path / "runs", *runs("kd", KD), *in_bf16(*hot))
    (_, plain) = (table for table in tables(open_ledger([folder], scores)) if table.run)
    assert not plain.twins


def test_failed_runs_are_kept_beside_the_others(tmp_path):
    folder = write(tmp_path / "runs", *runs("dkd", DKD), fail(make_record("dkd", 3)))
    write(folder, fail(make_record("rkd", 0)))
    ledger = open_ledger([folder], None)
    dkd, rkd = cell(ledger, "dkd"), cell(ledger, "rkd")
    assert (dkd.score.n, [record.seed for record in dkd.failed]) == (3, [3])
    assert (rkd.verdict, len(rkd.failed)) == (Verdict.NOT_RUN, 1)


def test_a_student_alone_heads_every_table_of_its_pairs(tmp_path):
    folder = write(tmp_path / "runs", *runs("ce", CE, teacher="none"), *runs("kd", KD))
    write(folder, *runs("kd", KD, teacher="wrn_40_2"))
    write(folder, *runs("ce", CE, teacher="none", student="resnet20"))
    made = tables(open_ledger([folder], None))
    assert [(table.pair, [c.method for c in table.cells]) for table in made] == [
        ("resnet20", ["ce"]),
        ("resnet32x4 -> resnet8x4", ["ce", "kd"]),
        ("wrn_40_2 -> resnet8x4", ["ce", "kd"]),
    ]
    assert made[1].name == "cifar100-resnet32x4_resnet8x4-240ep-b64-last"


def test_reconstructed_methods_are_marked(tmp_path):
    folder = write(tmp_path / "runs", make_record("dynamickd"), make_record("dkd"))
    write(folder, make_record("my_own"))
    marked = {c.method: c.reconstructed for c in open_ledger([folder], None).cells}
    assert marked == {"dynamickd": True, "dkd": False, "my_own": False}


def test_a_method_s_settings_are_rows_named_by_what_differs(tmp_path, scores):
    folder = write(tmp_path / "runs", *runs("kd", KD), *runs("dkd", DKD))
    for value in (2.0, 4.0):
        write(folder, *runs("dkd", DKD, settings={"nckd_weight": value}))
    ledger = open_ledger([folder], scores)
    assert ledger.problems == ()
    (table,) = [table for table in tables(ledger) if table.run]
    found = {c.row: ([str(d) for d in c.departures], c.verdict) for c in table.cells if c.records}
    file = "where conf/method/dkd.yaml has 8.0"
    assert found == {
        "kd": ([], Verdict.REPRODUCED),
        "dkd (nckd_weight 8.0)": ([], Verdict.REPRODUCED),
        "dkd (nckd_weight 2.0)": ([f"nckd_weight 2.0 {file}"], Verdict.NO_CLAIM),
        "dkd (nckd_weight 4.0)": ([f"nckd_weight 4.0 {file}"], Verdict.NO_CLAIM),
    }
    assert all(c.gain.n == 3 for c in table.cells if c.method == "dkd"), "all are compared with KD"


OTHER = [{"name": "resnet32x4", "sha256": "9" * 64, "top1": 60.83}]
PIXELS = {"name": "cifar100", "sha256": "8" * 64}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teachers": OTHER}, "had 2 teachers of that name, which are never compared"),
        ({"data": PIXELS}, "saw 2 kinds of data, which are never compared"),
    ],
)
def test_another_teacher_or_other_pixels_are_another_table(tmp_path, changes, words):
    folder = write(tmp_path / "runs", *runs("kd", KD), *runs("dkd", DKD, hash="0" * 8, **changes))
    for record in runs("dkd", DKD, hash="0" * 8, **changes):
        (folder / f"{record['run_id']}.json").unlink()
        record["run_id"] = f"{record['cell']}-s{record['seed']}-{record['hash']}"
        write(folder, record)
    ledger = open_ledger([folder], None)
    made = tables(ledger)
    assert sorted([c.method for c in table.cells] for table in made) == [["dkd"], ["kd"]]
    assert len({table.name for table in made}) == len({table.mark for table in made}) == 2
    assert all(c.gain is None for c in ledger.cells)
    assert any(words in line for line in ledger.problems)


def test_the_baseline_is_kd_as_conf_has_it_or_the_one_that_is_named(tmp_path):
    folder = write(tmp_path / "runs", *runs("dkd", DKD), *runs("at", KD))
    assert all(c.gain is None for c in open_ledger([folder], None).cells)
    chosen = open_ledger([folder], None, "at")
    assert (cell(chosen, "dkd").baseline, cell(chosen, "at").gain) == ("at", None)
    assert cell(chosen, "dkd").gain.mean == pytest.approx(2.9333, abs=1e-4)
    with pytest.raises(ConfigError, match="no cell is called 'akd': did you mean 'dkd'"):
        open_ledger([folder], None, "akd")
    for value in (2.0, 4.0, 8.0):
        write(folder, *runs("kd", KD, settings={"temperature": value}))
    assert cell(open_ledger([folder], None), "dkd").baseline == "kd (temperature 4.0)"
    named = open_ledger([folder], None, "kd (temperature 2.0)")
    assert cell(named, "dkd").baseline == "kd (temperature 2.0)"


def test_of_several_kds_none_is_taken_where_conf_s_is_not_there(tmp_path):
    folder = write(tmp_path / "runs", *runs("dkd", DKD))
    for value in (2.0, 8.0):
        write(folder, *runs("kd", KD, settings={"temperature": value}))
    ledger = open_ledger([folder], None)
    assert cell(ledger, "dkd").gain is None
    assert "baseline could be kd (temperature 2.0), kd (temperature 8.0)" in ledger.problems[0]


def test_a_gain_over_another_kd_reproduces_no_claim(tmp_path, scores):
    folder = write(tmp_path / "runs", *runs("dkd", DKD))
    write(folder, *runs("kd", KD, settings={"temperature": 2.0}))
    found = cell(open_ledger([folder], scores), "dkd")
    assert (found.gain.n, found.claimed_gain, found.verdict) == (3, None, Verdict.NO_CLAIM)


def test_tables_of_names_that_make_one_file_s_name_have_two(tmp_path):
    one = make_record(dataset="cifar100-a", student="b", teacher="none", cell="x")
    two = make_record(dataset="cifar100", student="a-b", teacher="none", cell="y")
    for record in (one, two):
        record["protocol"] = f"{record['data']['name']}-last"
        record["run_id"] = f"{record['cell']}-s0-{record['hash']}"
    made = tables(open_ledger([write(tmp_path / "runs", one, two)], None))
    names = {table.name.casefold() for table in made if table.run}
    assert len(names) == 2
    assert all(name.startswith("cifar100-a-b-last-") for name in names)


def damage(folder: Path, how: str) -> Path:
    path = folder / f"{make_record('dkd', 1)['run_id']}.json"
    if how == "torn":
        path.write_text(path.read_text()[:400])
    elif how == "altered":
        path.write_text(path.read_text().replace('"top1_last": 76.4', '"top1_last": 79.4'))
    else:
        write_content({**make_record("dkd", 1, 76.4), "format": 1}, path)
    return path


@pytest.mark.parametrize(
    ("how", "words"),
    [("torn", "is not a record"), ("altered", "was altered"), ("old", "is a record of format 1")],
)
def test_a_damaged_record_is_one_line_and_the_rest_is_made(tmp_path, scores, how, words):
    folder = write(tmp_path / "runs", *runs("kd", KD), *runs("dkd", DKD))
    path = damage(folder, how)
    ledger = open_ledger([folder], scores)
    (problem,) = ledger.problems
    assert problem.startswith(f"{path} ")
    assert words in problem
    assert "\n" not in problem
    assert [record.seed for record in cell(ledger, "dkd").records] == [0, 2]
    assert cell(ledger, "dkd").gain.n == 2


CELL = "cifar100-resnet32x4-resnet8x4-dkd"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "failed"}, "error is missing"),
        ({"hash": "00000000"}, "is not made of cell, seed and hash"),
        ({"cell": f"../{CELL}"}, "cannot name a file"),
        ({"protocol": "x" * 300}, "cannot name a file"),
        ({"top1_last": 101.0}, "top1_last must be from 0 to 100 percent, not 101.0"),
        ({"seconds_share": -1.0}, "seconds_share must be from 0 to"),
        ({"curve": {"test/top1": [1.0], "lr": [0.1, 0.1]}}, "lines of one length"),
        ({"curve": {"test/top1": [1e300]}}, "curve must stay within"),
        ({"top1_last": None}, "top1_last must be"),
    ],
)
def test_a_record_of_wrong_fields_is_one_line(tmp_path, changes, words):
    """Its checksum holds: somebody wrote it so."""
    record = {**make_record("dkd"), **changes}
    if "cell" in changes:
        record["run_id"] = f"{record['cell']}-s0-{record['hash']}"
    path = tmp_path / f"{CELL}-s0-00000000.json"
    write_content(record, path)
    (problem,) = open_ledger([tmp_path], None).problems
    assert problem.startswith(f"{path} is not a record (")
    assert words in problem


def test_a_run_counts_once_and_two_records_of_it_are_said(tmp_path):
    first = write(tmp_path / "a", *runs("kd", KD))
    copies = write(tmp_path / "b", *runs("kd", KD[:2]), make_record("kd", 2, 99.0))
    ledger = open_ledger([first, copies], None)
    (problem,) = ledger.problems
    assert "is another record of the same run" in problem
    assert cell(ledger, "kd").score.mean == pytest.approx(73.4)


def test_a_bad_row_and_a_missing_file_are_lines(tmp_path):
    folder = write(tmp_path / "runs", *runs("kd", KD))
    bad = published(tmp_path / "bad.csv", ("", "kd", "KD", "73.33", "last"))
    assert "line 2: left out, its source is missing" in open_ledger([folder], bad).problems[0]
    for path in (tmp_path / "none.csv", tmp_path / "nowhere"):
        ledger = open_ledger([folder, tmp_path / "nowhere"], tmp_path / "none.csv")
        assert sum(str(path) in line for line in ledger.problems) == 1
        assert cell(ledger, "kd").score.n == 3


def test_detectors_have_cells_of_ap_beside_their_published_claims():
    results = ROOT / "results"
    ledger = open_ledger([results / "smoke" / "detection"], results / "published.csv")
    found = [one for one in ledger.cells if (one.dataset, one.method) == ("coco", "ea_kd")]
    claims = {one.student: one.claimed_gain for one in found if not one.records}
    pairs = {"fasterrcnn_ResNet18": 0.81, "fasterrcnn_MobileNetV2": 1.68}
    assert claims == pytest.approx(pairs)
    (run,) = [one for one in found if one.records]
    assert (run.task.metric, run.score.mean) == ("ap", pytest.approx(14.74, abs=0.01))
    assert run.claimed_gain is None, "of other settings than the source's"
    assert run.records[0].details["AP50"] == pytest.approx(49.25, abs=0.01)
