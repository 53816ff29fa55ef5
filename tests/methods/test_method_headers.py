"""The head comment of every conf/method file, from which the documentation is generated."""

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
