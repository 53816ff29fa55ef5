"""What a new user meets first: the targets, the numbers in the README, files of their own."""

import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from torch import Tensor, nn

import kdbench.config.kinds
from kdbench.assembly.build import build_network
from kdbench.assembly.make import make
from kdbench.errors import ConfigError
from kdbench.schema.node import Node
from support.commands import ROOT, compose
from support.records import make_record, write_content

README = (ROOT / "README.md").read_text()


def test_help_lists_every_target_that_is_described():
    makefile = (ROOT / "Makefile").read_text()
    described = re.findall(r"^(\S+):.*## ", makefile, re.MULTILINE)
    (pattern,) = re.findall(r"grep -E '(.*?)'", makefile)
    assert "reproduce-cifar100" in described
    listed = [line.split(":")[0] for line in makefile.splitlines() if re.search(pattern, line)]
    assert sorted(listed) == sorted(described)


def test_the_quickstart_takes_one_time_everywhere():
    said = " about two minutes on two idle CPU cores"
    assert said in README
    assert said in (ROOT / "experiments" / "quickstart.yaml").read_text()
    assert "(about two minutes on two idle cores)" in (ROOT / "Makefile").read_text()


def test_the_cost_of_the_first_table_follows_from_the_records():
    sweep = yaml.safe_load((ROOT / "experiments/cifar100_resnet32x4_resnet8x4.yaml").read_text())
    params = sweep["hydra"]["sweeper"]["params"]
    names = [name.strip() for name in params["method"].split(",")]
    runs = len(names) * len(str(params["seed"]).split(","))
    assert f"{runs} runs ({len(names)} methods, five seeds) of 240 epochs" in README
    found = [
        json.loads(path.read_text())
        for path in (ROOT / "results" / "runs").glob("cifar100-*-resnet8x4-*.json")
    ]
    measured = [record for record in found if record["companions"] == 7]
    assert len(measured) == 8
    seconds = {record["seconds"] for record in measured}
    per_epoch = max(seconds) / 8 / 15
    costs = json.loads((ROOT / "results/benchmarks/methods.json").read_text())["methods"]
    own = [costs[name]["own"] for name in names if name in costs]
    theirs = [
        costs[record["config"]["method"]["name"]]["own"]
        for record in measured
        if record["config"]["method"]["name"] in costs
    ]
    steps = json.loads((ROOT / "results/benchmarks/h200.json").read_text())["steps"]
    eight = {
        s["precision"]: s["ms"]
        for s in steps
        if s["methods"] == 8
        and s["teacher"] == "live"
        and not s["compiled_student"]
        and s.get("streams", True)
    }
    heavier = sum(own) / len(own) / (sum(theirs) / len(theirs))
    hours = per_epoch * runs * 240 / 3600
    peak = max(record["peak_memory_mb"] for record in measured)
    for words in (
        f"{max(seconds)} s together",
        f"{per_epoch:.2f} s a run and epoch",
        f"{hours:.0f} hours for",
        f"times {heavier:.2f} for",
        f"some {hours * heavier:.0f} GPU-hours in bf16",
        f"times {eight['fp32'] / eight['bf16']:.1f} for fp32",
        f"peak of memory was {peak / 1000:.1f} GB",
    ):
        assert words in " ".join(README.split()), words
    assert "some 110 in fp32" in README
    assert math.isclose(hours * heavier * eight["fp32"] / eight["bf16"], 110, rel_tol=0.05)


def test_the_files_of_a_run_that_exact_alone_writes_are_said():
    page = (ROOT / "docs" / "architecture.md").read_text().split("## Files of a run")[1]
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows if "runtime=exact" in row[2]] == ["| `exact.json`"]


class Bare(nn.Linear):
    """A network as PyTorch's tutorials write it."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flatten(1)[:, :4])


def bare(num_classes: int, in_channels: int) -> nn.Module:
    return Bare(4, num_classes)


def test_a_network_that_returns_a_tensor_is_told_what_to_return(monkeypatch):
    module = ModuleType("kdbench.networks.bare")
    module.bare = bare
    monkeypatch.setattr(bare, "__module__", module.__name__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    listed = kdbench.config.kinds.listed  # as a package of its own would have it
    monkeypatch.setattr(
        kdbench.config.kinds,
        "listed",
        lambda group: (listed(group) or frozenset()) | {"kdbench.networks.bare.bare"},
    )
    dataset = make(
        compose("dataset=synthetic", "dataset.num_train=8", "dataset.num_test=8").dataset
    )
    with pytest.raises(
        ConfigError, match=r"mine returns a Tensor: .*return kdbench\.types\.Output"
    ):
        build_network(
            Node.read({"_target_": "kdbench.networks.bare.bare", "name": "mine"}), dataset
        )


def test_advice_never_leads_to_the_next_error(command):
    """Hydra's would be to write +method.temperature, which only some of the methods take."""
    result = command("train", "-m", "method=kd,ce", "method.temperature=3")
    assert result.error_line.startswith("unknown key 'method.temperature'")


def test_a_page_of_any_folder_of_runs(command, tmp_path):
    """Outside a checkout, without published scores."""
    for seed in range(2):
        folder = tmp_path / "runs" / f"run{seed}"
        folder.mkdir(parents=True)
        write_content(make_record("kd", seed, 70.0 + seed), folder / "record.json")
    assert "give --take RUNS" in command("report").error_line
    assert "nowhere does not exist" in command("report", "--take", "nowhere").error_line
    assert not Path("results").exists()
    made = command("report", "--take", "runs", "--results", "out")
    assert (made.code, made.err) == (0, "")
    assert "70.50" in Path("out/index.html").read_text()
