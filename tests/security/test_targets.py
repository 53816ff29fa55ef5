"""What a configuration has made is listed by kind; no other code of kdbench is called."""

from pathlib import Path
from typing import Any

import pytest

from kdbench.assembly.make import make
from kdbench.config.hydra_cli import compose_jobs
from kdbench.config.kinds import KINDS
from kdbench.config.run_config import check_train
from kdbench.data.base import Dataset
from kdbench.errors import ConfigError
from kdbench.methods.base import Method
from kdbench.schema.check import check_node, convert
from support.commands import ROOT, compose_method

SMALL = ["dataset=synthetic", "dataset.num_train=40", "dataset.num_test=20", "runtime=cpu"]
CANARY = Path("executed")
TOUCH = {"_target_": "kdbench.system.files.write_atomically", "path": "executed", "content": "x"}


@pytest.fixture(scope="module")
def config() -> dict:
    (job,) = compose_jobs("config", [*SMALL, "method=ea_kd", "teacher=resnet8"])
    return job


# Functions that are annotated to return what the key stands for, and call what they are given.
CALLERS = {
    "dataset": [
        {"_target_": "kdbench.sweeps.planning.load", "node": TOUCH, "datasets": {}},
        {"_target_": "kdbench.sweeps.cost.data_or_stand_in", "node": TOUCH},
        {"_target_": "kdbench.data.base.assemble"},
        {"_target_": "kdbench.data.base.Dataset"},
    ],
    "student": [
        {
            "_target_": "kdbench.assembly.build.build_student",
            "node": TOUCH,
            "dataset": None,
            "seed": 0,
        },
        {"_target_": "kdbench.assembly.build.build_network", "node": TOUCH, "dataset": None},
        {"_target_": "kdbench.methods.kd.KD"},
        {"_target_": "kdbench.networks.heads.Tapped"},
    ],
    "method": [
        {"_target_": "kdbench.assembly.build.build_method", "node": TOUCH, "seed": 0},
        {"_target_": "kdbench.tracking.run_logger.RunLogger"},
        {"_target_": "kdbench.networks.resnet.resnet8"},
        {"_target_": "kdbench.data.augmentation.strong.StrongView.__init__"},
    ],
    "logger": [
        {"_target_": "kdbench.tracking.run_logger.MetricsFile", "folder": "executed"},
        {"_target_": "kdbench.system.console.Console"},
    ],
    "runtime": [{"_target_": "kdbench.training.schedule.Schedule"}],
    "schedule": [{"_target_": "kdbench.system.runtime.Runtime"}],
}
KEYS = [(key, node) for key, nodes in CALLERS.items() for node in nodes]


@pytest.mark.parametrize(("key", "node"), KEYS, ids=lambda x: str(x)[13:60])
def test_only_what_is_listed_is_made(config, tmp_path, monkeypatch, key, node):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check_train({**config, key: {**node, "name": "x"}})
    assert "_target_" in str(caught.value)
    assert "\n" not in str(caught.value)
    group = "network" if key == "student" else key
    with pytest.raises(ConfigError, match="_target_"):
        make(node, group)
    assert not CANARY.exists()


@pytest.mark.parametrize("node", [node for _, node in KEYS], ids=lambda x: str(x)[13:60])
def test_make_by_itself_knows_the_kinds(tmp_path, monkeypatch, node):
    """Also where nobody has checked the node before, and no key says what it is to be."""
    monkeypatch.chdir(tmp_path)
    listed = ("KD", "RunLogger", "Schedule", "Runtime", "resnet8")
    if not node["_target_"].endswith(listed):
        with pytest.raises(ConfigError, match="_target_"):
            make(node)
    assert not CANARY.exists()


def test_a_kind_is_asked_for():
    data = compose_jobs("config", SMALL)[0]["dataset"]
    assert isinstance(make(data, "dataset"), Dataset)
    with pytest.raises(ConfigError, match="_target_"):
        make(data, "network")
    kd = compose_method("ea_kd")
    assert isinstance(make(kd, "method"), Method)
    with pytest.raises(ConfigError, match="_target_"):
        make(kd, "logger")


@pytest.mark.parametrize("word", ["_target_", "_partial_", "_args_", "_convert_", "_recursive_"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda node: {"a": node},
        lambda node: {"a": {"b": [node]}},
        lambda node: {"a": [[{"b": {"c": node}}]]},
        lambda node: node,
    ],
)
def test_words_that_make_objects_are_no_plain_data_at_any_depth(word, wrap):
    value = wrap({word: "os.system"})
    for hint in (Any, dict[str, Any], dict, Any | None):
        with pytest.raises(ConfigError, match=f"{word} is not allowed"):
            convert("x", value, hint)


def test_a_wrapped_method_is_no_function_that_returns_one():
    node = compose_method("ea_kd")
    node["inner"] = {"_target_": "kdbench.assembly.build.build_method", "node": TOUCH, "seed": 0}
    with pytest.raises(
        ConfigError, match=r"inner\._target_=kdbench\.assembly\.build\.build_method"
    ):
        check_node("method", node, kind=Method)


def test_what_the_files_of_conf_name_is_all_of_it():
    from kdbench.config.run_config import listed

    for group in KINDS:
        names = listed(group)
        assert names is None if group == "method" else names, group
        text = "".join(path.read_text() for path in (ROOT / "conf").rglob("*.yaml"))
        assert all(f"_target_: {name}\n" in text for name in names or ())
