"""The house rules of docs/architecture.md: imports point down, one door per outside library."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import ROOT

PACKAGE = ROOT / "src" / "kdbench"
# From the ground up; a room may import rooms of lower floors, and of its own.
FLOORS = [
    {
        "__version__",
        "types",
        "errors",
        "seeds",
        "files",
        "confidential",
        "packages",
        "torchrun",
        "ranks",
    },
    {"losses", "adapters", "pretraining_losses", "controllers", "teacher_table", "protocol"}
    | {"precision", "folding", "graphs", "frozen", "trained"}
    | {
        "schema",
        "passport",
        "record",
        "record_fields",
        "hardware",
        "checkpoint",
        "runtime",
        "console",
    }
    | {"disk", "hydra_nodes", "divergence", "exact", "locks", "preemption"}
    | {"published", "cells", "significance"},
    {"data", "networks", "weights", "log", "wandb_log", "config"}
    | {"ledger", "formats", "table", "ap_table"}
    | {"svg", "charts", "leaderboard", "page"},
    {"methods"},
    {"optim", "metrics", "cli", "micro_batches"},
    {"step", "build"},
    {"teachers", "snapshot", "accumulation"},
    {"member"},
    {"answers", "cohorts"},
    {"loop"},
    {"recording", "timings"},
    {"detection"},
    {"train", "evaluate", "catalogue", "estimate", "report", "compare"}
    | {"sync", "sweep_yaml", "dashboards"},
    {"worker"},
    {"executors", "planning"},
    {"clusters"},
    {"launch"},
]
DOORS = {
    "hydra": {"cli", "build"},
    "omegaconf": {"cli"},
    "wandb": {"wandb_log"},
    "wandb_workspaces": {"dashboards"},
    "rich": {"console"},
    "timm": {"networks"},
    "sklearn": {"data"},
    "torchvision": {"data", "networks", "detection"},
    "pycocotools": {"detection"},
    "safetensors": {"checkpoint", "weights"},
    "PIL": {"data"},
    "nvidia": {"data"},
    "pyarrow": {"data"},
    "submitit": {"clusters"},
    "ray": {"clusters"},
    "scipy": {"significance"},
    "statsmodels": {"significance"},
    "matplotlib": {"svg", "charts"},
    "yaml": {"sweep_yaml"},
}
EVERYWHERE = {"torch", "numpy", *sys.stdlib_module_names}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "kdbench":
            found |= {f"kdbench.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_and_through_one_door(path):
    if path.name == "__init__.py":
        assert not imports(path)
        return
    floor = next(i for i, rooms in enumerate(FLOORS) if room(path) in rooms)
    below = set().union(*FLOORS[: floor + 1])
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "kdbench":
            assert rest[0] in below, f"{room(path)} imports {name}, a higher floor"
        elif top not in EVERYWHERE:
            assert room(path) in DOORS.get(top, ()), f"{room(path)} imports {top}"


def test_a_method_imports_no_other_method():
    for path in (PACKAGE / "methods").glob("*.py"):
        others = {name for name in imports(path) if name.startswith("kdbench.methods.")}
        assert others <= {"kdbench.methods.base"}, path.name


def test_the_table_needs_no_torch():
    """Tables are made wherever records are, also where torch is not installed."""
    seen, todo = set(), ["table", "ap_table", "ledger", "report"]
    while todo:
        name = todo.pop()
        seen.add(name)
        for found in imports(PACKAGE / f"{name}.py"):
            assert not found.startswith(("torch", "numpy")), f"{name} imports {found}"
            if found.startswith("kdbench.") and found.split(".")[1] not in seen:
                todo.append(found.split(".")[1])


def names_used(path: Path) -> Iterator[tuple[str, int]]:
    """Every name and attribute of a source file, with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name | ast.Attribute):
            yield node.id if isinstance(node, ast.Name) else node.attr, node.lineno


def test_only_entries_and_the_console_print():
    for path in FILES:
        if room(path) not in ("cli", "console") and "__main__" not in path.read_text():
            lines = [line for name, line in names_used(path) if name == "print"]
            assert not lines, f"{path.name}:{lines} prints; messages go through the console"


def test_one_place_makes_objects_from_a_configuration():
    makers = {room(path) for path in FILES for name, _ in names_used(path) if name == "instantiate"}
    assert makers == {"build"}


@pytest.mark.parametrize(
    "rooms",
    [
        ("losses", "adapters", "controllers", "pretraining_losses", "networks", "optim"),
        ("data/views", "data/strong", "data/rotation", "data/randaugment"),
    ],
)
def test_what_a_step_is_made_of_waits_for_no_device(rooms):
    """As `test_methods` checks of the methods and the step."""
    waits = {"item", "cpu", "tolist", "nonzero", "masked_select", "synchronize"}
    for path in FILES:
        where = str(path.relative_to(PACKAGE).with_suffix(""))
        if where in rooms or room(path) in rooms:
            found = [(name, line) for name, line in names_used(path) if name in waits]
            assert not found, f"{where}: {found}"


def test_nothing_is_exempt_from_types_and_warnings():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert tools["mypy"]["strict"]
    assert not [o for o in tools["mypy"]["overrides"] if o.get("ignore_errors")]
    assert tools["pytest"]["ini_options"]["filterwarnings"] == ["error"]
    for path in FILES:
        for line in path.read_text().splitlines():
            if "no cover" in line:
                assert re.search(r"# pragma: no cover: \w", line), f"{path.name}: {line}"
            if "type: ignore" in line:
                assert re.search(r"# type: ignore\[[a-z-]+\]  # \w", line), f"{path.name}: {line}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_stay_small(path):
    limit = 150 if room(path) == "methods" else 300
    lines = path.read_text().splitlines()
    assert len(lines) <= limit, f"{len(lines)} lines"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 55, f"{node.name} has {length} lines"
