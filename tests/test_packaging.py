"""An installed wheel works as a checkout does."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from pkgutil import resolve_name

import pytest

from support.commands import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_configuration_and_passports_travel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for group in ("method", "teacher", "student", "dataset", "schedule", "tuned", "pair"):
        files = {f"kdbench/conf/{group}/{p.name}" for p in (ROOT / "conf" / group).glob("*.yaml")}
        assert files
        assert files <= set(names)
    assert "kdbench/conf/experiments/quickstart.yaml" in names
    assert "kdbench/conf/tuned/dkd/resnet56_resnet20.yaml" in names
    assert "hydra_plugins/kdbench_cohort/launcher.py" in names
    assert "hydra_plugins/kdbench_packages/search_path.py" in names
    assert {f"kdbench/ledger/page.{kind}" for kind in ("html", "css", "js")} <= set(names)
    assert "kdbench/py.typed" in names, "what imports kdbench is checked against its types"
    assert any(name.endswith("resnet32_cifar100.passport.json") for name in names)
    assert len(names) == len(set(names)), "nothing travels twice"


def test_every_command_is_there_and_has_its_libraries():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for command, place in project["scripts"].items():
        assert callable(resolve_name(place)), command
    assert {"torch", "numpy"} <= {name.partition(">")[0] for name in project["dependencies"]}


@pytest.mark.slow
def test_the_installed_package_trains_outside_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    arguments = ["dataset=synthetic", "dataset.num_train=40", "dataset.num_test=20", "runtime=cpu"]
    result = subprocess.run(
        [sys.executable, "-c", "from kdbench.train import main; main()", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.glob("runs/synthetic-none-resnet8-ce-s0-*/record.json"))
