"""Packages of others: who may bring code and configuration, and how far that goes."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from kdbench.assembly.make import make
from kdbench.config.hydra_cli import compose_group
from kdbench.errors import ConfigError
from kdbench.methods.base import Method
from kdbench.records.identity import packages_of
from kdbench.schema.check import check_node
from kdbench.schema.plugins import packages
from support.commands import ROOT

CODE = """
import os
from typing import TYPE_CHECKING

from kdbench.methods.kd import KD

if TYPE_CHECKING:
    from elsewhere import Unseen

class Ours(KD):
    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__(temperature)

def untyped(temperature):
    return Ours(temperature)

def typed_unseen(temperature: float = 4.0) -> "Unseen":
    return Ours(temperature)

def typed_badly(temperature) -> KD:
    return Ours(temperature)
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path, monkeypatch) -> Iterator[Install]:
    """Put a package where Python finds it, with the entry point that it asks for."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(asks_for: str | None, **files: str) -> None:
        for name, content in {"__init__": "", "code": CODE, **files}.items():
            path = tmp_path / "mylab" / (name if "/" in name else f"{name}.py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        about = tmp_path / "mylab-0.3.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mylab\nVersion: 0.3\n")
        if asks_for is not None:
            point = f"[kdbench.schema.plugins]\nmylab = {asks_for}\n"
            (about / "entry_points.txt").write_text(point)
        packages.cache_clear()

    packages.cache_clear()
    yield put
    packages.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]


def refused(target: object) -> str:
    with pytest.raises(ConfigError) as caught:
        check_node("method", {"_target_": target, "name": "x"}, kind=Method)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_package_that_does_not_ask_brings_nothing(install):
    install(None)
    assert "is not allowed: name something in kdbench" in refused("mylab.code.Ours")
    with pytest.raises(ConfigError, match="not allowed"):
        make({"_target_": "mylab.code.Ours", "name": "x"})
    assert "mylab.code" not in sys.modules, "it was not even imported"


def test_one_that_asks_brings_its_own_code_and_no_other(install):
    install("mylab")
    node = check_node("method", {"_target_": "mylab.code.Ours", "name": "x"}, kind=Method)
    assert make(node).temperature == 4.0
    assert packages_of({"method": node.spelt(), "list": [node.spelt()]}) == {"mylab": "0.3"}
    assert packages_of({"_target_": "kdbench.methods.kd.KD"}) == {}
    for target in ("mylab.code.os.system", "mylab.code:os.system", "mylab", "mylabs.code.Ours"):
        assert "name something in kdbench, mylab" in refused(target)
    for function in ("untyped", "typed_unseen"):
        assert "name a Method, or a function annotated" in refused(f"mylab.code.{function}")
    assert "mylab.code.typed_badly must annotate temperature" in refused("mylab.code.typed_badly")


@pytest.mark.parametrize("asks_for", ["mylab.code", "mylab:code", "os path"])
def test_what_is_no_package_is_named(install, command, asks_for):
    install(asks_for)
    said = command("train", "dataset=synthetic").error_line
    assert said.startswith(f"mylab asks for '{asks_for}' in its entry point kdbench.schema.plugins")


@pytest.mark.parametrize("code", ["def x(:", "1 / 0", "raise KeyError('a')", "import nothere"])
def test_code_that_cannot_be_imported_is_one_line(install, code):
    install("mylab", broken=code)
    assert "mylab.broken.X" in refused("mylab.broken.X")


def test_its_configuration_comes_after_ours(install, command):
    ours = "name: {}\n_target_: mylab.code.Ours\n"
    files = {f"conf/method/{name}.yaml": ours.format(name) for name in ("ours", "kd")}
    install("mylab", **files)
    assert compose_group("method", "ours")["name"] == "ours"
    assert compose_group("method", "kd")["_target_"] == "kdbench.methods.kd.KD"
    said = command("train", "method=our").error_line
    assert said == "unknown method 'our': did you mean 'ours'?"


def test_other_programs_with_hydra_are_left_alone(install, tmp_path):
    install("mylab", **{"conf/method/ours.yaml": "name: ours\n"})
    for folder, found in ((tmp_path, 0), (ROOT / "conf", 1)):
        with hydra.initialize_config_dir(str(folder), version_base="1.3"):
            path = GlobalHydra.instance().config_loader().get_search_path().get_path()
        assert sum(element.provider == "kdbench-packages" for element in path) == found


def test_a_namespace_without_configuration_is_no_place_to_search(install, tmp_path):
    install("mylab")
    assert not Path(tmp_path, "mylab", "conf").exists()
    assert compose_group("method", "kd")["name"] == "kd"
