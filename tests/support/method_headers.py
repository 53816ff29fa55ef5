"""Methods' files: their first lines, and which of them a test takes that is slow for each."""

import re

import pytest

from kdbench.assembly.method_pages import recipes
from support.commands import compose_method


def check_header(text: str) -> None:
    title, kind, *rest = text.splitlines()
    assert re.fullmatch(r"# [^:]+: .+\.", title), f"not '# <Title>: <authors, venue>.': {title}"
    assert re.fullmatch(f"# kind: ({KINDS}); status: ({STATUS})", kind), (
        f"not kind and status: {kind}"
    )
    assert re.match(r"# \S", rest[0]), "the third line says the expected score and its protocol"


KINDS = "label|logit|feature|relation|contrastive|multi-teacher|self|wrapper|trainer"
STATUS = "as published|as released code|reconstructed"


def quick_recipes() -> list:
    """All recipes; those around another one than KD, which is there by itself, are long ones."""
    return [pytest.param(name, marks=[pytest.mark.long] * _composite(name)) for name in recipes()]


def _composite(method: str) -> bool:
    inner = compose_method(method).get("inner")
    return inner is not None and inner["name"] != "kd"
