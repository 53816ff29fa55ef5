"""The commands of README's "From a finished run" work on the quickstart's runs."""

import json
import re
import shlex
from pathlib import Path

import pytest

from support.commands import ROOT

SECTION = (ROOT / "README.md").read_text().partition("## From a finished run")[2]
COMMANDS = re.search(r"^```\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)[1].splitlines()
SHORT = ["schedule.epochs=1", "schedule.milestones=[]", "logger=none", "runtime.threads=1"]


@pytest.mark.long  # test_analyse.py and test_export.py hold what these commands do
def test_a_figure_and_an_exported_student(command):
    trained = command("train", "method=ce", "student=resnet20", "runs_dir=runs/quickstart", *SHORT)
    assert trained.code == 0, trained.err
    sweep = ["+experiments=quickstart", "method=ce,kd", "seed=0,1", "hydra/launcher=basic"]
    assert command("train", *sweep, *SHORT).code == 0
    assert [line.split()[0] for line in COMMANDS] == ["kdbench-analyse", "kdbench-export"]
    for line in COMMANDS:
        program, *arguments = shlex.split(line)
        result = command(program.removeprefix("kdbench-"), *arguments)
        assert result.code == 0, result.err
    found = json.loads(Path("analysis/analysis.json").read_text())
    assert set(found["measures"]) == {"correlation", "calibration", "agreement"}
    assert len(found["networks"]) == 5
    assert Path("analysis/index.html").read_text().count("<figure>") == 4
    facts = json.loads(result.out.splitlines()[-1])
    assert Path(facts["file"]).suffix == ".pt2"
    assert facts["n"] == 256
    assert facts["top1"] == facts["top1_exported"]
