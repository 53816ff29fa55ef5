"""The head comment of every conf/method file, from which the documentation is generated."""

import re
from pathlib import Path

import pytest
from support.commands import ROOT

KINDS = "label|logit|feature|relation|contrastive|multi-teacher|self|wrapper|trainer"
STATUS = "as published|as released code|reconstructed"


def check_header(text: str) -> None:
    title, kind, *rest = text.splitlines()
    assert re.fullmatch(r"# [^:]+: .+\.", title), f"not '# <Title>: <authors, venue>.': {title}"
    assert re.fullmatch(f"# kind: ({KINDS}); status: ({STATUS})", kind), (
        f"not kind and status: {kind}"
    )
    assert re.match(r"# \S", rest[0]), "the third line says the expected score and its protocol"


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
