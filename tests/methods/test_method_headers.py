"""The head comment of every conf/method file, from which the documentation is generated."""

import re
from pathlib import Path

import pytest

from support.commands import ROOT
from support.method_headers import check_header


@pytest.mark.parametrize(
    "path", sorted((ROOT / "conf/method").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_method_says_what_it_is(path: Path):
    check_header(path.read_text())


@pytest.mark.parametrize(
    "text",
    [
        "# DKD, Zhao et al.\n# kind: logit; status: as published\n# 76.32",
        "# DKD: Zhao et al.\n# kind: logits; status: as published\n# 76.32",
        "# DKD: Zhao et al.\n# kind: logit; status: ours\n# 76.32",
        "# DKD: Zhao et al.\n# kind: logit; status: as published\nname: dkd",
    ],
)
def test_a_malformed_header_is_found(text: str):
    with pytest.raises(AssertionError):
        check_header(text)


def modules() -> list[str]:
    """The method modules that a file of conf/method names."""
    texts = [path.read_text() for path in (ROOT / "conf/method").glob("*.yaml")]
    named = {found for text in texts for found in re.findall(r"kdbench\.methods\.(\w+)\.", text)}
    return sorted(named)


@pytest.mark.parametrize("module", modules())
def test_every_method_has_a_test_of_its_own(module: str):
    """Written from the paper, in a file that imports the method."""
    files = (ROOT / "tests/methods").glob("test_*.py")
    assert any(f"from kdbench.methods.{module} import" in path.read_text() for path in files), (
        f"no file of tests/methods imports kdbench.methods.{module}: its loss needs a test "
        "against a reference (CONTRIBUTING.md, step 3)"
    )
