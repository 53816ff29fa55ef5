"""The generated files: the same bytes every time, and a check that says which are out of date."""

import shutil
from pathlib import Path

import pytest

from kdbench.ledger.results_folder import made
from support.commands import ROOT
from support.ledgers import DKD, KD, published, runs
from support.records import make_record, record_at, write, write_content

PAIR = "cifar100-resnet32x4_resnet8x4-240ep-b64-last"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder of results in the current folder of `command`."""
    folder = tmp_path / "results"
    write(folder / "runs", *runs("kd", KD), *runs("dkd", DKD), *runs("kd", KD, epochs=12))
    published(folder / "published.csv", ("Table", "dkd", "DKD", "76.32", "best"))
    return folder


def bytes_of(results: Path) -> dict[str, bytes]:
    files = [*(results / "tables").iterdir(), results / "index.html"]
    return {path.name: path.read_bytes() for path in files}


def test_every_table_in_every_form_with_an_index_and_a_page(command, results):
    assert "9 files" in command("report").out
    found = bytes_of(results)
    short = PAIR.replace("240", "12")
    forms = {f"{name}.{form}" for name in (PAIR, short) for form in ("md", "csv", "tex")}
    assert found.keys() == {*forms, "README.md", "index.html"}
    assert b"76.33 \xc2\xb1 0.21 (3)" in found[f"{PAIR}.md"]
    index = found["README.md"].decode()
    line = f"[cifar100, resnet32x4 -> resnet8x4, cifar100-240ep-b64-last]({PAIR}.md) | "
    run, cells = index.partition(line)[2].split(" | ")[:2]
    assert int(run) == 2
    assert int(cells.split()[0]) > 80, "all methods of the pair's own sweep"
    assert "follow 2 protocols, which are never compared" in index


def test_a_table_that_nobody_has_run_is_one_file(tmp_path):
    published(tmp_path / "published.csv", ("Table", "dkd", "DKD", "76.32", "best"))
    files, _ = made(tmp_path)
    assert [name for name in files if PAIR in name] == [f"tables/{PAIR}.md"]
    assert ".tex" not in files["tables/README.md"]


def test_the_same_records_give_the_same_bytes_anywhere(command, results, tmp_path):
    command("report")
    shutil.copytree(results, tmp_path / "elsewhere" / "r")
    command("report", "--results", str(tmp_path / "elsewhere" / "r"))
    assert bytes_of(tmp_path / "elsewhere" / "r") == bytes_of(results)


def test_the_check_names_what_differs_and_writes_nothing(command, results):
    command("report")
    assert command("report", "--check").code == 0
    (results / "tables" / f"{PAIR}.md").write_text("by hand\n")
    (results / "tables" / f"{PAIR}.tex").unlink()
    (results / "tables" / "cifar100-gone.csv").write_text("old\n")
    before = bytes_of(results)
    found = command("report", "--check")
    assert found.code == 1
    lines = [line for line in found.err.splitlines() if line.startswith("kdbench: error: ")]
    assert len(lines) == 3
    for line, words in zip(lines, (".md differs", ".tex is missing", "belongs to no"), strict=True):
        assert words in line
        assert line.endswith("run python -m kdbench.report")
    assert bytes_of(results) == before
    command("report")
    assert command("report", "--check").code == 0
    assert not (results / "tables" / "cifar100-gone.csv").exists()


def test_a_new_record_makes_the_check_fail(command, results):
    command("report")
    write(results / "runs", make_record("kd", 3, 73.9))
    assert f"{PAIR}.csv differs" in command("report", "--check").err


def test_a_damaged_record_is_listed_as_left_out(command, results):
    next((results / "runs").glob("*-dkd-s2-*")).write_text("{")
    found = command("report")
    assert found.code == 0
    assert "-dkd-s2-" in found.err
    index = (results / "tables" / "README.md").read_text()
    assert "- runs/cifar100-resnet32x4-resnet8x4-dkd-s2-" in index.split("## Left out")[1]


def test_without_results_nothing_is_made(command, tmp_path):
    assert "results/runs does not exist" in command("report").error_line
    assert list(tmp_path.iterdir()) == []


def test_the_columns_are_explained():
    from kdbench.ledger.formats import FULL

    page = (ROOT / "docs" / "results.md").read_text()
    assert [column for column in FULL if f"| {column} |" not in page] == []


def test_runs_are_taken_into_the_results(command, results, tmp_path):
    """A new seed is; what is there stays, also where the folder's run has failed since."""
    known, new = runs("kd", KD)[0], runs("kd", [*KD, 70.0])[-1]
    for record in ({**known, "status": "failed", "error": "no"}, new):
        folder = tmp_path / "work" / record["run_id"]
        folder.mkdir(parents=True)
        write_content(record, folder / "record.json")
    assert "1 records copied" in command("report", "--take", str(tmp_path / "work")).out
    assert record_at(results / "runs" / f"{known['run_id']}.json")["status"] == "done"
    assert f"({len(KD) + 1})" in (results / "tables" / f"{PAIR}.md").read_text()
    torn, whole = folder / "record.json", runs("kd", [*KD, 70.0, 71.0])[-1]
    torn.write_text("{")
    (tmp_path / "work" / whole["run_id"]).mkdir()
    write_content(whole, tmp_path / "work" / whole["run_id"] / "record.json")
    found = command("report", "--take", str(tmp_path / "work"))
    assert (found.code, "1 records copied" in found.out) == (0, True)
    assert f"kdbench: warning: {torn} is not a record" in found.err


def test_another_run_of_the_same_name_is_not_taken(command, results, tmp_path):
    """Its data are others, which a name does not tell."""
    known = runs("kd", KD)[0]
    other = {**known, "data": {**known["data"], "sha256": "f" * 64}}
    (sent,) = write(tmp_path / "work", other).iterdir()
    found = command("report", "--take", str(tmp_path / "work"))
    assert "0 records copied" in found.out
    kept = Path("results/runs") / sent.name
    assert f"kdbench: warning: {sent} is left, {kept} is another run of the same name" in found.err
    assert record_at(kept)["data"]["sha256"] == "0" * 64


def test_a_damaged_record_is_replaced_by_that_of_its_run(command, results, tmp_path):
    known = runs("kd", KD)[0]
    write(tmp_path / "work", known)
    torn = results / "runs" / f"{known['run_id']}.json"
    torn.write_text("{")
    found = command("report", "--take", str(tmp_path / "work"))
    assert (found.code, "1 records copied" in found.out) == (0, True)
    assert record_at(torn)["top1_last"] == KD[0]


def test_a_folder_that_is_not_there_is_one_line(command, results):
    assert "nowhere does not exist" in command("report", "--take", "nowhere").error_line


def test_without_records_every_cell_is_not_run(command, results):
    for path in (results / "runs").glob("*.json"):
        path.unlink()
    found = command("report")
    assert found.code == 0
    assert "there are no records in results/runs: every cell is not run" in found.err
