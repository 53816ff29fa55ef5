"""docs/tutorials.md works as it stands, outside the checkout: every file, every command."""

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbench.records.record import find_records
from kdbench.schema.plugins import packages
from support.commands import ROOT, Command

PAGE = (ROOT / "docs" / "tutorials.md").read_text()
FILE = r"^`(?P<name>[\w./]+)`\n\n```(?:python|toml|yaml)\n(?P<content>.*?)^```$"
SHELL = r"^```sh\n(?P<commands>.*?)^```$"
BLOCK = re.compile(f"{FILE}|{SHELL}", re.DOTALL | re.MULTILINE)


@pytest.fixture
def mylab(tmp_path, monkeypatch) -> Iterator[None]:
    """What the page installs is found as if it were, and forgotten afterwards."""
    for folder in ("site", "."):
        monkeypatch.syspath_prepend(tmp_path / folder)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{tmp_path / 'site'}")  # of worker processes
    packages.cache_clear()
    yield
    packages.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]


def execute(line: str, command: Command) -> str:
    """One command of the page; returns what it printed."""
    program, *arguments = shlex.split(line)
    if program.startswith("kdbench-"):
        result = command(program.removeprefix("kdbench-"), *arguments)
        assert result.code == 0, f"{line}\n{result.err}"
        return result.out
    if program == "pip":
        assert arguments == ["install", "--editable", "."]
        offline = ["--no-deps", "--no-index", "--no-build-isolation", "--target=site", "."]
        arguments = ["-m", "pip", "--quiet", "install", *offline]
        packages.cache_clear()
    subprocess.run([sys.executable, *arguments], check=True, timeout=120)
    importlib.invalidate_caches()
    return ""


@pytest.mark.slow
def test_every_file_and_every_command(command, mylab):
    blocks = list(BLOCK.finditer(PAGE))
    assert len(blocks) == len(re.findall(r"^```\w+$", PAGE, re.MULTILINE)), "a block is not run"
    printed = ""
    for block in blocks:
        if block["name"]:
            path = Path(block["name"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block["content"])
            importlib.invalidate_caches()
        else:
            for line in block["commands"].replace("\\\n", " ").splitlines():
                printed = execute(line, command) or printed
    records = {record.run_id.rpartition("-")[0]: record for record in find_records([Path("runs")])}
    margin = records["stripes-wide-plain-margin-s1"]
    assert margin.versions["mylab"] == "0.1"
    assert margin.companions == 1, "kd's, in its cohort"
    assert records["pictures-none-resnet8-ce-s0"].top1_last > 60, "chance is 50"
    assert records["stripes-none-wide-ce-s1000"].top1_last > 30, "chance is 12.5"
