"""The committed records are intact, and the README says what they say."""

from conftest import ROOT
from kdbench.record import find_records
from kdbench.table import table

RUNS = ROOT / "results" / "runs"
SMOKE = ROOT / "results" / "smoke"


def test_committed_records_are_intact_and_named_after_their_run():
    names = {path.stem for path in RUNS.glob("*.json")}
    assert names
    assert {record["run_id"] for record in find_records([RUNS])} == names


def test_smoke_runs_are_kept_apart_and_their_table_is_generated():
    records = find_records([SMOKE])
    assert {record["run_id"] for record in records} == {path.stem for path in SMOKE.glob("*.json")}
    assert {record["config"]["schedule"]["name"] for record in records} == {"cifar100_smoke"}
    assert {record["status"] for record in records} == {"done"}, "a value that is not finite"
    assert table(records) in (SMOKE / "README.md").read_text()


def test_the_readme_s_table_is_generated():
    readme = (ROOT / "README.md").read_text()
    assert table(find_records([RUNS])) in readme, "run python -m kdbench.table results/runs"
