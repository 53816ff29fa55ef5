"""The house rules of docs/architecture.md: imports point down, one door per outside library."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.commands import ROOT
from support.house import DOORS, FILES, PACKAGE, WINGS, WORDS, dotted, imports, picture, storey

EVERYWHERE = {"torch", "numpy", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_imports_point_down_and_through_one_door(path):
    here = dotted(path)
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "kdbench":
            climbs = storey(rest) > storey(here) or (storey(rest) == len([*WORDS, *WINGS]))
            assert not climbs, f"{here} imports {rest}, which stands above it"
        elif top not in EVERYWHERE:
            doors = DOORS.get(top, ())
            inside = any(f"{here}.".startswith(f"{door}.") for door in doors)
            assert inside, f"{here} imports {top}, whose door is {', '.join(doors) or 'nowhere'}"


def test_a_wing_says_in_one_sentence_what_it_holds_and_hands_out_nothing():
    folders = {path.parent for path in FILES if path.parent != PACKAGE}
    assert {folder.relative_to(PACKAGE).parts[0] for folder in folders} == set(WINGS)
    for folder in folders:
        (only,) = ast.parse((folder / "__init__.py").read_text()).body
        sentence = ast.literal_eval(only.value)
        assert re.fullmatch(r"[^.\n]+\.", sentence), f"{folder.name}: {sentence}"


def test_the_ground_floor_holds_entries_and_words_alone():
    names = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    entries = names - set(WORDS)
    assert len(names) < 22
    for name in entries:
        assert "__main__" in (PACKAGE / f"{name}.py").read_text(), f"{name} is no entry"


def test_the_picture_is_that_of_the_imports():
    drawn = (ROOT / "docs" / "images" / "house.svg").read_text()
    assert drawn == picture(), "python tests/support/house.py > docs/images/house.svg"


def test_tests_share_through_their_own_folder_alone():
    for path in (ROOT / "tests").rglob("test_*.py"):
        for name in imports(path):
            assert not re.search(r"(^|\.)test_", name), f"{path.name} imports {name}"


def test_no_room_is_called_after_nothing():
    for path in FILES:
        assert not {"utils", "util", "common", "helpers", "misc"} & set(dotted(path).split("."))


SHARED_BY_METHODS = {"base", "class_memory", "logit_scale", "wasserstein"}


def test_a_method_imports_no_other_method():
    for path in (PACKAGE / "methods").glob("*.py"):
        others = {name for name in imports(path) if name.startswith("kdbench.methods.")}
        assert others <= {f"kdbench.methods.{name}" for name in SHARED_BY_METHODS}, path.name


def test_the_table_needs_no_torch():
    """Tables are made wherever records are, also where torch is not installed."""
    seen, todo = set(), ["table", "report"]
    while todo:
        name = todo.pop()
        seen.add(name)
        for found in imports(PACKAGE.joinpath(*name.split(".")).with_suffix(".py")):
            assert not found.startswith(("torch", "numpy")), f"{name} imports {found}"
            if found.startswith("kdbench.") and found.removeprefix("kdbench.") not in seen:
                todo.append(found.removeprefix("kdbench."))


def names_used(path: Path) -> Iterator[tuple[str, int]]:
    """Every name and attribute of a source file, with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name | ast.Attribute):
            yield node.id if isinstance(node, ast.Name) else node.attr, node.lineno


def test_only_entries_and_the_console_print():
    for path in FILES:
        talks = dotted(path) in ("config.hydra_cli", "config.arguments", "system.console")
        if not talks and "__main__" not in path.read_text():
            lines = [line for name, line in names_used(path) if name == "print"]
            assert not lines, f"{path.name}:{lines} prints; messages go through the console"


def test_one_place_makes_objects_from_a_configuration():
    makers = {dotted(path) for path in FILES if "construct" in dict(names_used(path))}
    assert makers == {"assembly.make"}
    assert not any("instantiate" in dict(names_used(path)) for path in FILES)


@pytest.mark.parametrize(
    "place",
    ["losses", "networks", "methods", "tasks.classification.losses", "training.step"]
    + ["training.schedule", "training.step_schedule"]
    + [f"data.augmentation.{name}" for name in ("views", "strong", "rotation", "randaugment")],
)
def test_what_a_step_is_made_of_waits_for_no_device(place):
    """As `methods/test_contract` checks of the methods and the step."""
    waits = {"item", "cpu", "tolist", "nonzero", "masked_select", "synchronize"}
    for path in FILES:
        if f"{dotted(path)}.".startswith(f"{place}."):
            found = [(name, line) for name, line in names_used(path) if name in waits]
            assert not found, f"{dotted(path)}: {found}"


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


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_rooms_stay_small(path):
    recipe = path.parent.name == "methods" and path.stem not in SHARED_BY_METHODS
    limit = 150 if recipe else 300
    lines = path.read_text().splitlines()
    assert len(lines) <= limit, f"{len(lines)} lines"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 55, f"{node.name} has {length} lines"
