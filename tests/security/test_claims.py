"""Every claim of docs/security.md names a test that there is."""

import re

from support.commands import ROOT

PAGE = ROOT / "docs" / "security.md"
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def test_the_tests_that_are_named_are_there():
    text = PAGE.read_text()
    names = re.findall(r"test_\w+(?:\.\.\.|\.py)?", text)
    there = {
        name for path in TESTS for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    files = {path.name for path in TESTS} | {path.stem for path in TESTS}
    for name in names:
        start = name.removesuffix("...")
        found = [one for one in there if one.startswith(start)]
        assert name in files or (found if name.endswith("...") else name in there), name
    assert len(names) > 40


def test_every_claim_names_one():
    """A claim is a point of a list that starts with what it is about."""
    text = PAGE.read_text()
    given = text.partition("## Configuration")[2].partition("## What is PyTorch's")[0]
    points = re.split(r"^- ", given, flags=re.MULTILINE)[1:]
    assert len(points) > 15
    for point in points:
        assert "test" in point or point.startswith("**What a configuration can do**"), point[:60]
