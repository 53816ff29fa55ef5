"""The one line that says whether a difference is real."""

import sys

import pytest

from kdbench import compare
from support.commands import Result
from support.records import fail, make_record, write

KD = [make_record("kd", seed, top1) for seed, top1 in enumerate([70.0, 70.4, 69.8])]
DKD = [make_record("dkd", seed, top1) for seed, top1 in enumerate([71.1, 71.6, 70.9])]
PLACE = "on cifar100 resnet32x4 -> resnet8x4 (cifar100-240ep-b64-last, last epoch)"


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """Run kdbench-compare in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["kdbench-compare", *map(str, arguments)])
        code = 0
        try:
            compare.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "results" / "runs"


def test_a_real_difference(ask, runs):
    # By hand: differences 1.1, 1.2, 1.1; mean 1.1333, standard error 0.0333, t(2) 34: p = 0.00086.
    write(runs, *KD, *DKD)
    expected = (
        f"dkd - kd {PLACE}: +1.13 points, 95% interval +0.99 to +1.28, p < 0.001, "
        "n = 3 paired seeds: real\n"
    )
    assert ask("dkd", "kd") == Result(0, expected, "")
    cells = ("cifar100-resnet32x4-resnet8x4-dkd", "cifar100-resnet32x4-resnet8x4-kd")
    assert ask(*cells, "--runs", runs) == Result(0, expected, "")


def test_a_tie(ask, runs):
    # By hand: differences 1, -1, 0; mean 0, standard error 0.577; 4.303 x 0.577 = 2.48.
    write(runs, *KD, *(make_record("at", s, top1) for s, top1 in enumerate([71.0, 69.4, 69.8])))
    assert ask("at", "kd").out == (
        f"at - kd {PLACE}: +0.00 points, 95% interval -2.48 to +2.48, p = 1, "
        "n = 3 paired seeds: a tie\n"
    )


def test_one_seed_cannot_tell(ask, runs):
    write(runs, *KD, DKD[1])
    assert ask("dkd", "kd") == Result(
        0, f"dkd - kd {PLACE}: +1.20 points, one seed: cannot tell\n", ""
    )


def test_seeds_that_do_not_match_are_not_paired(ask, runs):
    write(runs, *KD, *(make_record("dkd", s, top1) for s, top1 in [(7, 75.0), (8, 75.2)]))
    found = ask("dkd", "kd")
    assert found.code == 0
    assert found.out.endswith("n = 2 and 3 seeds, none shared, unpaired Welch test: real\n")

    write(runs, make_record("at", 9, 75.0))
    assert "+4.93 points, n = 1 and 3 seeds, none shared: cannot tell" in ask("at", "kd").out


def test_runs_are_named_by_path(ask, tmp_path):
    write(tmp_path / "a", *DKD)
    write(tmp_path / "b", *KD)
    assert "+1.13 points" in ask("a/", "b/").out
    record = f"a/{DKD[0]['run_id']}.json"
    assert ask(record, "b/").out.endswith("+1.10 points, one seed: cannot tell\n")
    assert ask(record, "kd", "--runs", "b").out.endswith("+1.10 points, one seed: cannot tell\n")


def test_a_run_s_folder_is_named_from_inside_its_parent(ask, tmp_path):
    for record in (KD[0], DKD[0]):
        (path,) = write(tmp_path / record["run_id"], record).iterdir()
        path.rename(path.with_name("record.json"))
    assert "+1.10 points" in ask(DKD[0]["run_id"], KD[0]["run_id"]).out


def test_a_committed_record_and_its_run_count_once(ask, runs, tmp_path):
    write(runs, *KD, *DKD)
    write(tmp_path / "runs", *KD, *DKD)
    assert ask("dkd", "kd").out.endswith("n = 3 paired seeds: real\n")


def test_a_student_alone_can_be_the_baseline(ask, runs):
    write(runs, *KD, *(make_record("ce", s, 68.0 + s / 10, teacher="none") for s in range(3)))
    assert ask("kd", "ce").out.startswith(f"kd - ce {PLACE}: +1.97 points")
    assert ask("ce", "kd").out.startswith(f"ce - kd {PLACE}: -1.97 points")


def test_a_name_of_several_cells_means_the_one_that_fits(ask, runs):
    other = [make_record("kd", 0, 90.0, student="vgg8"), make_record("kd", 0, 90.0, epochs=15)]
    write(runs, *KD, *DKD, *other)
    assert "+1.13 points" in ask("dkd", "kd").out


def test_names_that_fit_several_comparisons(ask, runs):
    write(runs, KD[0], DKD[0], *(make_record(m, 0, student="vgg8") for m in ("kd", "dkd")))
    found = ask("dkd", "kd")
    assert found.code == 2
    assert "can be 2 comparisons" in found.error_line
    assert "cifar100-resnet32x4-vgg8-dkd cifar100-resnet32x4-vgg8-kd" in found.error_line


def test_two_settings_of_one_cell_are_told_apart_by_their_hash(ask, runs):
    other = make_record("dkd", 0, 72.0, settings={"beta": 2.0})
    write(runs, KD[0], DKD[0], other)
    found = ask("dkd", "kd")
    assert found.code == 2
    name = f"{other['cell']}-{other['hash']}"
    assert f"{name} {KD[0]['cell']}" in found.error_line
    assert "+2.00 points" in ask(name, "kd").out
    first = f"{DKD[0]['cell']}-{DKD[0]['hash']}"
    assert f"dkd ({other['hash']}) - dkd ({DKD[0]['hash']}) on" in ask(name, first).out


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"epochs": 15}, "protocol (cifar100-240ep-b64-last, cifar100-15ep-b64-last)"),
        ({"student": "vgg8"}, "student (resnet8x4, vgg8)"),
        ({"teacher": "vgg13"}, "teachers (resnet32x4 11111111, vgg13 11111111)"),
        (
            {"teachers": [{"name": "resnet32x4", "sha256": "3" * 64}]},
            "teachers (resnet32x4 11111111, resnet32x4 33333333)",
        ),
        ({"data": {"name": "cifar100", "sha256": "4" * 64}}, "data (00000000, 44444444)"),
        ({"data": {"name": "digits", "sha256": "4" * 64}}, "data set (cifar100, digits)"),
    ],
)
def test_what_is_never_compared(ask, runs, changes, what):
    write(runs, DKD[0], make_record("kd", 0, **changes))
    found = ask("dkd", "kd")
    assert found.code == 2
    assert found.error_line == f"'dkd' and 'kd' cannot be compared: different {what}"


def test_names_of_several_cells_of_which_no_two_fit(ask, runs):
    write(runs, *(make_record("dkd", 0, student=name) for name in ("vgg8", "resnet8x4")))
    write(runs, make_record("kd", 0, epochs=15))
    found = ask("dkd", "kd")
    assert found.code == 2
    assert found.error_line.startswith("no 'dkd' and 'kd' have data, teachers, student and")


def test_a_cell_and_itself(ask, runs):
    write(runs, *KD)
    found = ask("kd", "kd")
    assert (found.code, found.error_line) == (
        2,
        "'kd' and 'kd' are the same runs: name two cells",
    )


def test_an_unknown_name_gets_the_nearest(ask, runs):
    write(runs, *KD, *DKD)
    found = ask("dkdd", "kd")
    assert (found.code, found.error_line) == (2, "no finished run of 'dkdd': did you mean 'dkd'?")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("dkd",), 2, "required: B"),
        (("dkd", "kd", "--run-dirs", "x"), 2, "unrecognized arguments"),
        (("dkd", "kd", "--runs", "nowhere"), 2, "nowhere does not exist"),
        (("nowhere/dkd", "kd"), 1, "neither results/runs nor runs"),
        (("nowhere/dkd", "elsewhere/kd"), 2, "nowhere/dkd does not exist"),
        (("dkd", "kd"), 1, "neither results/runs nor runs"),
    ],
)
def test_a_wrong_command_is_one_line(ask, arguments, code, message):
    found = ask(*arguments)
    assert message in found.error_line
    assert found.code == code


def test_damaged_records_are_named_and_the_rest_is_used(ask, runs):
    write(runs, *KD, *DKD)
    torn, altered = runs / f"{DKD[0]['run_id']}.json", runs / f"{KD[1]['run_id']}.json"
    torn.write_text(torn.read_text()[:300])
    altered.write_text(altered.read_text().replace("70.4", "60.4"))
    write(runs, make_record("rkd", format=1))
    found = ask("dkd", "kd")
    assert found.code == 0
    assert found.out.endswith("+1.10 points, one seed: cannot tell\n")
    lines = sorted(found.err.splitlines())
    assert len(lines) == 3
    for line, path, word in zip(
        lines,
        (torn, altered, runs / f"{make_record('rkd')['run_id']}.json"),
        ("is not a record", "was altered", "format 1"),
        strict=True,
    ):
        assert str(path.relative_to(runs.parents[1])) in line
        assert word in line


def test_only_damaged_or_failed_records(ask, runs):
    write(runs, fail(KD[0]), fail(DKD[0]))
    (runs / "x-s0-00000000.json").write_text("{")
    found = ask("dkd", "kd")
    assert found.code == 1
    assert "no finished run in results/runs" in found.err.splitlines()[-1]


def test_a_failed_seed_is_told(ask, runs):
    write(runs, *KD, *DKD[:2], fail(DKD[2]))
    found = ask("dkd", "kd")
    assert found.out.endswith("n = 2 paired seeds: real\n")
    assert found.err.count("\n") == 1
    assert f"without {DKD[2]['run_id']}, it failed: a loss is not finite" in found.err


def test_a_run_s_id_names_it_with_its_hash_and_without(ask, runs):
    write(runs, *KD, *DKD)
    for ours, base in ((DKD[1]["run_id"], KD[1]["run_id"]), (f"{DKD[1]['cell']}-s1", "kd")):
        assert ask(ours, base).out.endswith("+1.20 points, one seed: cannot tell\n")
    assert "did you mean" in ask(f"{DKD[1]['cell']}-s7", "kd").error_line
