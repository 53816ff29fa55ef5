"""What `make chaos` takes for the same run, and what it says of its trials."""

import json

import pytest
import torch
from safetensors.torch import save_file

from chaos import slurm_cluster
from chaos.compare import CLOSE, far
from chaos.ground import Ground
from chaos.report import report
from chaos.run import left_out, method_of, write_page
from chaos.trials import Trial, records, repeated
from kdbench.training.fused import has_plain_step

WEIGHTS = torch.linspace(-1, 1, 100)


def finished(folder, weights=WEIGHTS, epochs=2):
    folder.mkdir()
    save_file({"fc.weight": weights}, folder / "student.safetensors")
    rows = [json.dumps({"epoch": epoch + 1, "seconds": 1.0}) + "\n" for epoch in range(epochs)]
    (folder / "metrics.jsonl").write_text("".join(rows))
    return folder


@pytest.mark.parametrize(("part", "found"), [(0.5, []), (2.0, ["weights: 4.0e-03 of their norm"])])
def test_weights_may_be_off_by_rounding_alone(tmp_path, part, found):
    moved = WEIGHTS * (1 + part * CLOSE)
    assert far(finished(tmp_path / "one"), finished(tmp_path / "other", moved)) == found


def test_weights_that_are_not_finite_and_a_missing_epoch_are_no_rounding(tmp_path):
    one, odd = finished(tmp_path / "one"), WEIGHTS * float("nan")
    assert far(one, finished(tmp_path / "odd", odd)) == ["weights: nan of their norm"]
    assert far(one, finished(tmp_path / "short", epochs=1)) == ["metrics.jsonl"]


def test_a_run_that_was_done_is_not_made_again(tmp_path):
    record = finished(tmp_path / "synthetic-kd-s0-12345678") / "record.json"
    record.touch()
    done = records(tmp_path)
    assert list(done) == [record]
    assert not repeated(done, tmp_path)
    assert repeated({record: done[record] - 1}, tmp_path) == [
        f"{record.parent.name} was done twice"
    ]


@pytest.mark.parametrize(
    ("method", "fits"),
    [("kd", True), ("reviewkd", True), ("mlkd", False), ("dot", False), ("sdd", False)],
)
def test_which_students_can_be_stacked(method, fits):
    """Not those with two views, two backward passes, or a student that a wrapper changes."""
    assert has_plain_step(method_of(method)) == fits


def test_what_cannot_be_tried_here_is_left_out_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm_cluster, "PROGRAMS", ("slurmctld-of-nowhere",))
    found = left_out(Ground(tmp_path, 0, {}, ["kd", "mlkd"]), ["runs", "slurm", "fused"])
    assert found == {
        "slurm": "no slurmctld-of-nowhere: apt-get install slurm-wlm munge",
        "fused": "fewer than two of the methods can train as one network",
    }
    assert not left_out(Ground(tmp_path, 0, {}, ["kd", "crd"]), ["fused", "agents"])


def test_each_kind_is_reported_in_its_own_section():
    trials = [
        Trial(0, "fused", ["kd", "crd"], "live", ["from outside"] * 2, apart=3e-8),
        Trial(1, "fused", ["kd", "at"], "auto", [], ["SIGTERM in table"], ["was done twice"]),
        Trial(2, "agents", ["kd"], "live", ["rank"]),
    ]
    said = report(trials, [], "make chaos", {"slurm": "no slurmctld"})
    assert list(said) == ["chaos-fused", "chaos-clusters"]
    fused, clusters = said.values()
    assert "2 kills and 1 requests to stop in 2 trials (2 cohorts as one network) of 3" in fused
    assert "**1 of 2 ended with every record" in fused
    assert "(the farthest: 3e-08)" in fused
    assert "- trial 1: was done twice" in fused
    assert "| from outside | 2 |" in fused
    assert "**1 of 1 ended with the bits" in clusters
    assert "Left out: sweeps on Slurm (no slurmctld)." in clusters


def test_results_replace_those_of_their_own_mark(tmp_path):
    page = tmp_path / "page.md"
    marks = "<!-- {0}: begin -->\nold\n<!-- {0}: end -->\n"
    page.write_text(marks.format("chaos") + "between\n" + marks.format("chaos-fused"))
    write_page(page, "chaos-fused", "new")
    new = marks.format("chaos-fused").replace("old", "new")
    assert page.read_text() == marks.format("chaos") + "between\n" + new
