"""The W&B workspace and report are made of what runs log; nothing here reaches W&B."""

import sys

import pytest

from kdbench import dashboards
from kdbench.records.reading import record_of
from kdbench.tracking.sending import LEDGER, sync
from kdbench.tracking.wandb_mirror import Target
from kdbench.tracking.workspace import quoted
from support import records, wandb_files

# wandb-workspaces is written in pydantic's older style.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def found(node, key):
    """Every value of a key, at any depth."""
    if isinstance(node, dict):
        return [v for k, v in node.items() if k == key] + found(list(node.values()), key)
    return [value for item in node for value in found(item, key)] if isinstance(node, list) else []


@pytest.fixture
def report(monkeypatch):
    """The specification that would be saved; only the project's number is asked of the server."""
    pytest.importorskip("wandb_workspaces")
    from wandb_workspaces.reports.v2 import interface

    monkeypatch.setattr(interface, "_get_api", lambda: None)
    answer = {"project": {"internalId": "1"}}
    monkeypatch.setattr(interface, "execute_graphql", lambda *_: answer)
    pairs = dashboards.pairs_of(record_of(records.make_record(method)) for method in ("kd", "dkd"))
    model = dashboards.report("us", "kdbench", pairs)._to_model()
    return model.spec.model_dump(by_alias=True, exclude_none=True)


@pytest.fixture
def workspace():
    pytest.importorskip("wandb_workspaces")
    model = dashboards.workspace("us", "kdbench")._to_model()
    return model.spec.model_dump(by_alias=True, exclude_none=True)


def test_the_report_has_the_ledger_and_a_section_a_pair(report):
    def filters(grid):
        (runset,) = grid["metadata"]["runSets"]
        return {f["key"]["name"]: f["value"] for f in runset["filters"]["filters"]}

    grids = [block for block in report["blocks"] if block["type"] == "panel-grid"]
    assert [filters(grid) for grid in grids] == [
        {"jobType": LEDGER},
        {"pair": "resnet32x4_resnet8x4", "protocol": records.PROTOCOL},
    ]
    assert LEDGER in found(grids[0], "val")


@pytest.mark.parametrize("pair", ["a' or Config('x') = 'b", 'a=b<c"', "within_last 5 days", "ü\\"])
def test_a_name_is_no_part_of_a_filter(pair):
    expr = pytest.importorskip("wandb_workspaces.expr")
    (found,) = expr.expr_to_filters(f"Config('pair') = {quoted(pair)}").filters or [None]
    found = found or expr.expr_to_filters(f"Config('pair') = {quoted(pair)}")
    assert found.value == pair


def test_every_value_that_is_shown_is_one_that_runs_log(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = records.make_record()
    folder = records.write(tmp_path / "results", record)
    sync([folder], Target("kdbench", None, "offline", tmp_path / "sync"))
    entries = wandb_files.written(tmp_path / "sync", record["run_id"])
    logged = {key for row in wandb_files.history(entries) for key in row}
    logged |= {"test/loss", "lr", "seconds"}  # of metrics.jsonl; a record's curve has no more
    summary, config = wandb_files.summary(entries), wandb_files.config(entries)
    (runs,) = workspace["section"]["runSets"]
    for key in runs["grouping"]:
        node = config
        for part in key["name"].replace(".value", "").split("."):
            node = node[part]
        assert isinstance(node, str)
    columns = set(runs["runFeed"]["columnOrder"]) - {"run:displayName"}
    assert {column.removeprefix("summary:") for column in columns} <= set(summary)
    shown = [key for keys in found(workspace["section"], "metrics") for key in keys]
    assert shown
    for key in shown:
        source = summary if key.startswith("summary_metrics.") else logged
        assert key.removeprefix("summary_metrics.") in source


def test_without_wandb_workspaces_the_command_says_what_to_install(monkeypatch, capsys, tmp_path):
    folder = records.write(tmp_path / "results", records.make_record())
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    monkeypatch.setattr(sys, "argv", ["kdbench-dashboards", str(folder), "--entity", "us"])
    with pytest.raises(SystemExit) as stop:
        dashboards.main()
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'kdbench[dashboards]'" in line


def test_without_an_entity_nothing_is_made(monkeypatch, capsys):
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    monkeypatch.setattr(sys, "argv", ["kdbench-dashboards", "results"])
    with pytest.raises(SystemExit) as stop:
        dashboards.main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("dashboards are somebody's: give --entity NAME, a user or a team")


class Unsaved:
    """A view that W&B does not take."""

    def save(self):
        raise ConnectionError("no route\nto host")


@pytest.mark.parametrize(
    ("folder", "said"),
    [("nowhere", "nowhere does not exist"), ("results", "did not save (no route to host): check")],
)
def test_what_keeps_it_from_saving_is_one_line(monkeypatch, capsys, tmp_path, folder, said):
    monkeypatch.chdir(tmp_path)
    records.write(tmp_path / "results", records.make_record())
    monkeypatch.setattr(dashboards, "workspace", lambda *_: Unsaved())
    monkeypatch.setattr(dashboards, "report", lambda *_: Unsaved())
    monkeypatch.setattr(sys, "argv", ["kdbench-dashboards", folder, "--entity", "us"])
    with pytest.raises(SystemExit) as stop:
        dashboards.main()
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
