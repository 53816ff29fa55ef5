"""The house rules of docs/architecture.md: imports point down, one door per outside library."""

import ast
from pathlib import Path

import pytest

from conftest import ROOT

PACKAGE = ROOT / "src" / "kdbench"
# From the ground up; a room may import rooms of lower floors, and of its own.
FLOORS = [
    {"__version__", "types", "errors", "seeds", "files", "confidential"},
    {"losses", "adapters", "pretraining_losses", "controllers", "teacher_table", "protocol"}
    | {"precision", "folding", "graphs", "frozen"}
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
    | {"divergence", "exact", "locks"}
    | {"published", "cells", "significance"},
    {"data", "networks", "weights", "log", "wandb_log", "config"}
    | {"ledger", "formats", "table"}
    | {"svg", "charts", "leaderboard", "page"},
    {"methods"},
    {"optim", "metrics", "cli"},
    {"step", "build"},
    {"teachers", "snapshot"},
    {"member"},
    {"answers", "cohorts"},
    {"loop"},
    {"recording", "timings"},
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
    "torchvision": {"data", "networks"},
    "safetensors": {"checkpoint", "weights"},
    "PIL": {"data"},
    "pyarrow": {"data"},
    "submitit": {"clusters"},
    "ray": {"clusters"},
    "scipy": {"significance"},
    "statsmodels": {"significance"},
    "matplotlib": {"svg", "charts"},
}
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
        elif top in DOORS:
            assert room(path) in DOORS[top], f"{room(path)} imports {top}"


def test_a_method_imports_no_other_method():
    for path in (PACKAGE / "methods").glob("*.py"):
        others = {name for name in imports(path) if name.startswith("kdbench.methods.")}
        assert others <= {"kdbench.methods.base"}, path.name


def test_the_table_needs_no_torch():
    """Tables are made wherever records are, also where torch is not installed."""
    seen, todo = set(), ["table", "ledger", "report"]
    while todo:
        name = todo.pop()
        seen.add(name)
        for found in imports(PACKAGE / f"{name}.py"):
            assert not found.startswith(("torch", "numpy")), f"{name} imports {found}"
            if found.startswith("kdbench.") and found.split(".")[1] not in seen:
                todo.append(found.split(".")[1])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_stay_small(path):
    limit = 150 if room(path) == "methods" else 300
    lines = path.read_text().splitlines()
    assert len(lines) <= limit, f"{len(lines)} lines"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 55, f"{node.name} has {length} lines"
